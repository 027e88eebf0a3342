"""``--dataset-name timed_trace``: lengths, moments and shared beginnings of a service's requests, as prompts made up.

A trace tells what its prompts have in common by hash ids: one for each chunk of so many tokens. An id stands for the
same text wherever it comes.
"""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy

from vllm_bench.workload import file_options, trace_options
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.json_entries import Entry, read_lines
from vllm_bench.workload.text import CountedText, TextSource, joined
from vllm_cli.commands.connection import positive_integer

_FIELDS = {
    "timestamp": "timestamp",
    "input-length": "input_length",
    "output-length": "output_length",
    "hash-ids": "hash_ids",
}
"""End of an option -> the field that it renames."""
_MOST_SEED = 2**63
_KEPT_CHUNKS = 16384


class _Request(NamedTuple):
    moment: float
    input_len: int
    output_len: int
    hash_ids: list[int | str]


class TimedTrace:
    """See ``Dataset``. In the file's order, and once."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--timed-trace-...``."""
        parser.add_argument(
            "--timed-trace-chunk-hash-size",
            type=positive_integer,
            default=16,
            metavar="TOKENS",
            help="timed_trace: what one hash id stands for (default: %(default)s). The file has an object a line; "
            "where ids are missing for the end of a prompt, that is its own",
        )
        for name, field in _FIELDS.items():
            parser.add_argument(
                f"--timed-trace-label-{name}",
                default=field,
                metavar="FIELD",
                help="timed_trace: its name in the file (default: %(default)s)",
            )

    def items(self, options: Namespace, text: TextSource, rng: numpy.random.Generator) -> Iterator[WorkItem]:
        """See ``Dataset``."""
        requests = [_request(entry, options) for entry in read_lines(file_options.dataset_file(options))]
        if options.self_timed:
            requests.sort(key=lambda request: request.moment)
        items = _prompts(requests, options, text, rng)
        if options.self_timed:
            items = trace_options.timed([request.moment for request in requests], items, options)
        return file_options.required(items, options)


def _request(entry: Entry, options: Namespace) -> _Request:
    ids = entry.fields.get(options.timed_trace_label_hash_ids, [])
    if not isinstance(ids, list) or not all(isinstance(one, int | str) for one in ids):
        raise entry.wrong(f"{options.timed_trace_label_hash_ids!r} is no list of ids")
    return _Request(
        entry.number(options.timed_trace_label_timestamp) if options.self_timed else 0.0,
        entry.length(options.timed_trace_label_input_length),
        options.output_len or entry.length(options.timed_trace_label_output_length),
        ids,
    )


def _prompts(
    requests: list[_Request], options: Namespace, text: TextSource, rng: numpy.random.Generator
) -> Iterator[WorkItem]:
    size = options.timed_trace_chunk_hash_size
    seed = int(rng.integers(_MOST_SEED))

    @lru_cache(_KEPT_CHUNKS)
    def chunk(hash_id: int | str, num_tokens: int) -> CountedText:
        # The same text whenever it is made.
        own = numpy.random.Generator(numpy.random.PCG64([seed, *str(hash_id).encode()]))
        return text.make(num_tokens, own)

    for request in requests:
        whole, rest = divmod(request.input_len, size)
        lengths = [size] * whole + [rest] * (rest > 0)
        parts = [chunk(one, length) for one, length in zip(request.hash_ids, lengths, strict=False)]
        missing = sum(lengths[len(parts) :])
        if missing:
            parts.append(text.make(missing, rng))
        prompt, count = joined(text, parts)
        yield WorkItem(prompt, count, request.output_len)


DATASET = TimedTrace()
