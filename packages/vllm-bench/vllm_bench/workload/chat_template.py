"""Conversations for APIs that take texts: the server puts them into its model's chat template before the run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from vllm_bench.workload.item import Messages, WorkItem
from vllm_cli.command import CommandError


def sends_text(backend: str) -> bool:
    """Whether the API of ``--backend`` carries a text as it is: it applies no chat template itself."""
    return backend in ("openai", "vllm")


def templated(items: Iterator[WorkItem], render: Callable[[Messages], list[int]]) -> Iterator[WorkItem]:
    """``items``, where conversations have become the ids of a prompt that ``render`` makes of them.

    One that goes on (``follow_up``) stays as it is: its next turn is not known before the run.

    Raises:
        CommandError: (exit code 2) ``render`` raises ``LookupError``: the server cannot do it.
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
                f"the server did not apply its model's chat template ({error}): --skip-chat-template sends prompts as "
                "they are, --backend openai-chat as messages",
                exit_code=2,
            ) from error
        yield replace(item, prompt=prompt, prompt_len=len(prompt))
