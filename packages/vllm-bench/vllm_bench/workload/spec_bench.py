"""``--dataset-name spec_bench``: the questions of Spec-Bench's file, all of them or those of one category."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload import file_options
from vllm_bench.workload.chat_template import as_question
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.json_entries import Entry, read_lines
from vllm_bench.workload.text import TextSource
from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy


class SpecBench:
    """See ``Dataset``."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--spec-bench-...``."""
        parser.add_argument(
            "--spec-bench-output-len",
            type=positive_integer,
            default=256,
            metavar="TOKENS",
            help="spec_bench: most tokens of an answer (default: %(default)s). The file has an object a line, with "
            '"category" and "turns", of which the first is sent',
        )
        parser.add_argument(
            "--spec-bench-category", metavar="NAME", help="spec_bench: questions of this category (default: all)"
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        entries = list(read_lines(file_options.dataset_file(options)))
        wanted = options.spec_bench_category
        categories = dict.fromkeys(entry.text("category") for entry in entries)
        if wanted is not None and wanted not in categories:
            raise CommandError(
                f"--spec-bench-category {wanted}: {options.dataset_path} has {', '.join(categories)}", exit_code=2
            )
        questions = [_question(entry) for entry in entries if wanted in (None, entry.text("category"))]
        output_len = options.output_len or options.spec_bench_output_len
        items = (
            WorkItem(as_question(question, options), text.count(question), output_len)
            for question in file_options.ordered(questions, options, rng)
        )
        return file_options.oversampled(items, options)


def _question(entry: Entry) -> str:
    turns = entry.fields.get("turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
        raise entry.wrong("'turns' is no list that begins with a text")
    return turns[0]


DATASET = SpecBench()
