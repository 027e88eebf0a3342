"""``--dataset-name sharegpt``: what people asked first, with as much room for an answer as they got."""

import itertools
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload import file_options
from vllm_bench.workload.conversations import Turn, read_conversations
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.text import TextSource
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy

LEAST_TOKENS = 4
"""Of a prompt, and of an answer whose length is the file's."""
MOST_PROMPT_TOKENS = 1024
MOST_TOKENS = 2048
"""Of a prompt and its answer together."""


class ShareGPT:
    """See ``Dataset``."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--sharegpt-...``."""
        parser.add_argument(
            "--sharegpt-output-len",
            type=positive_integer,
            metavar="TOKENS",
            help="sharegpt: most tokens of an answer (default: of the answer in the file). The file is a JSON list, or "
            "an object a line, of conversations; of each, the first question is sent. Left out are those without an "
            f"answer, with a prompt or an answer below {LEAST_TOKENS} tokens, with a prompt above "
            f"{MOST_PROMPT_TOKENS}, or with more than {MOST_TOKENS} in both",
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        pairs = [pair for turns in read_conversations(file_options.dataset_file(options)) if (pair := _first(turns))]
        output_len = options.output_len or options.sharegpt_output_len
        items = (_item(pair, output_len, text) for pair in file_options.ordered(pairs, options, rng))
        return file_options.oversampled((item for item in items if item is not None), options)


def _first(turns: list[Turn]) -> tuple[str, str] | None:
    """The first question and its answer."""
    for turn, following in itertools.pairwise(turns):
        if turn.role == "user":
            return (turn.text, following.text) if following.role == "assistant" else None
    return None


def _item(pair: tuple[str, str], output_len: int | None, text: TextSource) -> WorkItem | None:
    """None where a length is out of bounds; without a counter, a word stands for a token."""
    prompt, answer = pair
    count = text.count(prompt)
    length = len(prompt.split()) if count is None else count
    if not LEAST_TOKENS <= length <= MOST_PROMPT_TOKENS:
        return None
    if output_len is None:
        answer_count = text.count(answer)
        output_len = len(answer.split()) if answer_count is None else answer_count
        if output_len < LEAST_TOKENS:
            return None
    return WorkItem(prompt, count, output_len) if length + output_len <= MOST_TOKENS else None


DATASET = ShareGPT()
