"""Goodput: the requests that kept every promise of an SLO."""

from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence

from vllm_bench.records import RequestRecord

SLO_METRICS = ("ttft", "tpot", "e2el")
"""Times of a request that may be promised."""


def slo(text: str) -> tuple[str, float]:
    """``type=`` of ``--goodput``: ``ttft:200`` is the metric and its limit in ms."""
    name, colon, limit = text.partition(":")
    try:
        milliseconds = float(limit)
    except ValueError:
        milliseconds = -1.0
    if name not in SLO_METRICS or not colon or not 0 <= milliseconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not of the form ttft:200, tpot:50 or e2el:3000 (milliseconds)")
    return name, milliseconds


def num_good(done: Sequence[RequestRecord], limits: Mapping[str, float]) -> int:
    """How many of the completed requests kept all ``limits`` (metric -> ms).

    An answer of one token has no time per token to break; one of which no text came has not kept a limit of ``ttft``.
    """
    return sum(keeps(record, limits) for record in done)


def keeps(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """``record`` has kept all ``limits``."""
    return all(_milliseconds(record, name) <= limit for name, limit in limits.items())


def _milliseconds(record: RequestRecord, name: str) -> float:
    if name == "ttft":
        return 1e3 * record.ttft if record.text_times else float("inf")
    if name == "tpot":
        return 1e3 * (record.tpot or 0.0)
    return 1e3 * record.latency
