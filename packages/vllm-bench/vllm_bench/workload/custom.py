"""``--dataset-name custom``: the prompts or conversations of a file of JSON lines."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload import file_options
from vllm_bench.workload.chat_template import as_question
from vllm_bench.workload.item import Messages, WorkItem
from vllm_bench.workload.json_entries import Entry, read_lines
from vllm_bench.workload.text import TextSource
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy

_FROM_FILE = -1


class Custom:
    """See ``Dataset``."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--custom-...``."""
        parser.add_argument(
            "--custom-output-len",
            type=_output_len,
            default=256,
            metavar="TOKENS",
            help='custom: most tokens of an answer; -1: each line\'s "output_tokens" (default: %(default)s). The file '
            'has an object a line, with "prompt" or with "messages" in OpenAI\'s form',
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        entries = list(read_lines(file_options.dataset_file(options)))
        lines = [(_prompt(entry, options), _answer_len(entry, options)) for entry in entries]
        items = (_item(prompt, output_len, text) for prompt, output_len in file_options.ordered(lines, options, rng))
        return file_options.oversampled(items, options)


def _prompt(entry: Entry, options: Namespace) -> str | Messages:
    if "messages" in entry.fields and "prompt" not in entry.fields:
        messages = entry.objects("messages")
        if not messages or not all(isinstance(message.get("role"), str) for message in messages):
            raise entry.wrong("'messages' needs at least one, and a 'role' in each")
        return Messages(messages)
    return as_question(entry.text("prompt"), options)


def _answer_len(entry: Entry, options: Namespace) -> int:
    length: int = options.output_len or options.custom_output_len
    return entry.length("output_tokens") if length == _FROM_FILE else length


def _item(prompt: str | Messages, output_len: int, text: TextSource) -> WorkItem:
    return WorkItem(prompt, text.count(prompt) if isinstance(prompt, str) else None, output_len)


def _output_len(text: str) -> int:
    if text == str(_FROM_FILE):
        return _FROM_FILE
    try:
        return positive_integer(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{text!r} is neither a whole number above 0 nor -1") from error


DATASET = Custom()
