"""``--dataset-name random``: texts of random tokens, of lengths around a mean, perhaps after a prefix for all."""

import json
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload.batches import batch_sizes, batched
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.text import TextSource, joined
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy


class RandomPrompts:
    """See ``Dataset``. Without end."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--random-...``."""
        parser.add_argument(
            "--random-input-len",
            type=positive_integer,
            default=1024,
            metavar="TOKENS",
            help="random: tokens of a prompt without its prefix (default: %(default)s)",
        )
        parser.add_argument(
            "--random-output-len",
            type=positive_integer,
            default=128,
            metavar="TOKENS",
            help="random: most tokens of an answer (default: %(default)s)",
        )
        parser.add_argument(
            "--random-range-ratio",
            type=_ratios,
            default=(0.0, 0.0),
            metavar="R",
            help="random: lengths are uniform within (1 - R) and (1 + R) times these; 0 to below 1, or "
            '\'{"input": R, "output": R}\' (default: 0.0)',
        )
        parser.add_argument(
            "--random-prefix-len",
            type=_length,
            default=0,
            metavar="TOKENS",
            help="random: tokens of a prefix that is the same for all prompts (default: %(default)s)",
        )
        parser.add_argument(
            "--random-batch-size",
            type=positive_integer,
            default=1,
            metavar="N",
            help="random, random-rerank: texts in a request of embeddings, or documents in one of reranking; "
            "--num-prompts counts them all (default: %(default)s)",
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        items = self._items(options, text, rng)
        return items if options.random_batch_size == 1 else batched(items, batch_sizes(options))

    def _items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        input_ratio, output_ratio = options.random_range_ratio
        prefix = text.make(options.random_prefix_len, rng) if options.random_prefix_len else None
        while True:
            input_len = length_around(options.input_len or options.random_input_len, input_ratio, rng)
            output_len = length_around(options.output_len or options.random_output_len, output_ratio, rng)
            made = text.make(input_len, rng)
            prompt, count = made if prefix is None else joined(text, [prefix, made])
            yield WorkItem(prompt, count, output_len)


def length_around(mean: int, ratio: float, rng: "numpy.random.Generator") -> int:
    """A length within (1 - ratio) and (1 + ratio) times ``mean``, 1 or more."""
    if not ratio:
        return mean
    return int(rng.integers(max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio)) + 1))


def _ratios(text: str) -> tuple[float, float]:
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            ratios = float(value.pop("input", 0.0)), float(value.pop("output", 0.0))
            good = not value
        else:
            ratios, good = (float(value), float(value)), True
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good or not all(0 <= ratio < 1 for ratio in ratios):
        raise ArgumentTypeError(f'{text!r} is neither a number from 0 to below 1 nor {{"input": R, "output": R}}')
    return ratios


def _length(text: str) -> int:
    return 0 if text == "0" else positive_integer(text)


DATASET = RandomPrompts()
