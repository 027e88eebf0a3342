"""What traces of real services have in common: their moments, and how these become seconds of a run."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace, _ArgumentGroup
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vllm_bench import option_types
from vllm_bench.workload.item import WorkItem
from vllm_cli.command import CommandError

TIMED = ("burstgpt", "timed_trace")
"""Datasets that know moments."""


def add_arguments(parser: ArgumentParser | _ArgumentGroup) -> None:
    """The options that they share."""
    parser.add_argument(
        "--self-timed",
        action=BooleanOptionalAction,
        default=False,
        help="burstgpt, timed_trace: send each request at its moment in the trace, from the first one's on, in their "
        "order and once (default: as --request-rate says)",
    )
    parser.add_argument(
        "--timed-trace-sec-multiplier",
        type=option_types.positive_number,
        default=1.0,
        metavar="X",
        help="burstgpt, timed_trace: seconds of the run for 1 in a timestamp; 0.001 where these are milliseconds, and "
        "less to replay faster (default: 1)",
    )


def check(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) for another schedule beside a trace's own."""
    if not options.self_timed:
        return
    if options.dataset_name not in TIMED:
        raise CommandError(
            f"--self-timed: {options.dataset_name} knows no moments; {' and '.join(TIMED)} do", exit_code=2
        )
    if options.request_rate != float("inf") or options.ramp_up_strategy is not None:
        raise CommandError(
            "--self-timed keeps the trace's moments: no --request-rate, no --ramp-up-strategy", exit_code=2
        )


def timed(moments: Sequence[float], items: Iterator[WorkItem], options: Namespace) -> Iterator[WorkItem]:
    """``items`` with their moments, as seconds after the first; ``moments`` are in their order and never decrease."""
    seconds = options.timed_trace_sec_multiplier
    for moment, item in zip(moments, items, strict=True):
        yield replace(item, offset=(moment - moments[0]) * seconds)
