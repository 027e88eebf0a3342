"""How many requests were under way, and how fast tokens came, as the run went on."""

from collections.abc import Sequence

import numpy

from vllm_bench.records import RequestRecord


def peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """Most requests between their sending and their end at any moment; one that ends as another begins is gone."""
    changes = sorted([(record.sent, 1) for record in records] + [(record.ended, -1) for record in records])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def tokens_in_each_second(records: Sequence[RequestRecord], began: float) -> list[float]:
    """Output tokens in each second from ``began`` on; the tokens of a request are spread evenly over its chunks.

    Those of an answer without any come with its end.
    """
    times = [record.text_times or [record.ended] for record in records]
    moments = [moment - began for of_request in times for moment in of_request]
    if not moments:
        return []
    weights = [
        record.output_tokens / len(of_request)
        for record, of_request in zip(records, times, strict=True)
        for _ in of_request
    ]
    seconds = numpy.maximum(0, numpy.floor(moments)).astype(numpy.int64)
    return [float(tokens) for tokens in numpy.bincount(seconds, weights)]


def peak_tokens_per_second(records: Sequence[RequestRecord], began: float) -> float:
    """The most of these."""
    return max(tokens_in_each_second(records, began), default=0.0)
