"""Conversations for APIs that take texts: they are put into the model's chat template before the run."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from vllm_bench.workload.item import Messages, WorkItem
from vllm_bench.workload.template_folder import TemplateFolder
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_cli.command import CommandError

Render = Callable[[Messages], list[int]]
"""Token ids of a conversation in the model's chat template, up to where the answer begins; raises ``LookupError``
where nobody can tell."""


def sends_text(backend: str) -> bool:
    """Whether the API of ``--backend`` carries a text as it is: it applies no chat template itself."""
    return backend in ("openai", "vllm")


def as_question(prompt: str, options: Namespace) -> str | Messages:
    """A prompt of a file: a user's message where the API applies no template, unless ``--skip-chat-template``."""
    if sends_text(options.backend) and not options.skip_chat_template:
        return Messages([{"role": "user", "content": prompt}])
    return prompt


def renderer(tokenizer: Path | None, server: Render) -> Render:
    """Makes ids of a conversation with the chat template in the tokenizer's folder, else by asking the ``server``."""
    if tokenizer is None:
        return server
    try:
        template = TemplateFolder(tokenizer if tokenizer.is_dir() else tokenizer.parent)
    except LookupError:
        return server
    encode = TokenizerText(tokenizer).encode
    return lambda messages: encode(template.render(messages))


def templated(items: Iterator[WorkItem], render: Render) -> Iterator[WorkItem]:
    """``items``, where conversations have become the ids of a prompt that ``render`` makes of them.

    One that goes on (``follow_up``) stays as it is: its next turn is not known before the run.

    Raises:
        CommandError: (exit code 2) ``render`` raises ``LookupError``: there is no template to be had.
    """

    @cache
    def ids(conversation: str) -> list[int]:
        return render(Messages(json.loads(conversation)))

    for item in items:
        if not isinstance(item.prompt, Messages) or item.follow_up is not None:
            yield item
            continue
        try:
            prompt = ids(json.dumps(item.prompt))
        except LookupError as error:
            raise CommandError(
                f"no chat template to put prompts into: {error}. --tokenizer takes a folder that has one, "
                "--skip-chat-template sends prompts as they are, --backend openai-chat as messages",
                exit_code=2,
            ) from error
        yield replace(item, prompt=prompt, prompt_len=len(prompt))
