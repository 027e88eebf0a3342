"""``--dataset-name burstgpt``: the lengths and moments of a BurstGPT trace, as prompts made up."""

import csv
import io
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllm_bench.workload import file_options, trace_options
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.json_entries import MOST_TOKENS, read_text
from vllm_bench.workload.text import TextSource
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    import numpy

_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")
_ALL = "all"


class _Row(NamedTuple):
    moment: float
    input_len: int
    output_len: int


class BurstGPT:
    """See ``Dataset``."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--burstgpt-...``."""
        parser.add_argument(
            "--burstgpt-model",
            default="GPT-4",
            metavar="NAME",
            help="burstgpt: send this model's rows; all: every row (default: %(default)s). The file is CSV with the "
            f"columns {', '.join(_COLUMNS)}; rows without a response, which are failures, are left out",
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        rows = _rows(file_options.dataset_file(options), options.burstgpt_model)
        if options.self_timed:
            rows.sort(key=lambda row: row.moment)
            moments = [row.moment for row in rows]
            items = trace_options.timed(moments, _items(iter(rows), options, text, rng), options)
            return file_options.required(items, options)
        ordered = file_options.ordered(rows, options, rng)
        return file_options.oversampled(_items(ordered, options, text, rng), options)


def _rows(file: Path, model: str) -> list[_Row]:
    reader = csv.reader(io.StringIO(read_text(file)))
    header = next(reader, [])
    absent = [column for column in _COLUMNS if column not in header]
    if absent:
        raise CommandError(f"{file}, line 1: there is no column {absent[0]!r}", exit_code=2)
    places = [header.index(column) for column in _COLUMNS]
    rows = []
    try:
        for cells in reader:
            if not cells:
                continue
            if len(cells) <= max(places):
                raise CommandError(f"{file}, line {reader.line_num}: there are only {len(cells)} columns", exit_code=2)
            moment, name, asked, answered = (cells[place] for place in places)
            row = _Row(
                _number(file, reader.line_num, _COLUMNS[0], moment),
                int(_number(file, reader.line_num, _COLUMNS[2], asked)),
                int(_number(file, reader.line_num, _COLUMNS[3], answered)),
            )
            if model in (name, _ALL) and row.input_len > 0 and row.output_len > 0:
                rows.append(row)
    except csv.Error as error:
        raise CommandError(f"{file}, line {reader.line_num}: this is no CSV: {error}", exit_code=2) from error
    return rows


def _number(file: Path, line: int, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= (1e18 if column == _COLUMNS[0] else MOST_TOKENS):
        raise CommandError(f"{file}, line {line}: {column!r} is no number in its range", exit_code=2)
    return number


def _items(
    rows: Iterator[_Row], options: Namespace, text: TextSource, rng: "numpy.random.Generator"
) -> Iterator[WorkItem]:
    for row in rows:
        prompt, count = text.make(row.input_len, rng)
        yield WorkItem(prompt, count, options.output_len or row.output_len)


DATASET = BurstGPT()
