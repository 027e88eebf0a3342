"""``--dataset-name prefix_repetition``: made-up prompts, many of which begin alike."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.text import TextSource, joined
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy

_LENGTHS = {
    "prefix-len": (256, "TOKENS", "tokens of a prefix"),
    "suffix-len": (256, "TOKENS", "tokens of what follows it, another one in each prompt"),
    "num-prefixes": (10, "N", "different prefixes; each comes once in so many prompts"),
    "output-len": (128, "TOKENS", "most tokens of an answer"),
}
"""Option without its prefix -> default, what it counts, meaning."""


class PrefixRepetition:
    """See ``Dataset``. Without end."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--prefix-repetition-...``."""
        for name, (default, unit, meaning) in _LENGTHS.items():
            parser.add_argument(
                f"--prefix-repetition-{name}",
                type=positive_integer,
                default=default,
                metavar=unit,
                help=f"prefix_repetition: {meaning} (default: %(default)s)",
            )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        number = options.prefix_repetition_num_prefixes
        prefixes = [text.make(options.prefix_repetition_prefix_len, rng) for _ in range(number)]
        suffix_len = options.input_len or options.prefix_repetition_suffix_len
        output_len = options.output_len or options.prefix_repetition_output_len
        while True:
            order = range(number) if options.disable_shuffle else rng.permutation(number).tolist()
            for chosen in order:
                prompt, count = joined(text, [prefixes[chosen], text.make(suffix_len, rng)])
                yield WorkItem(prompt, count, output_len)


DATASET = PrefixRepetition()
