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
    """Output tokens in each second from ``began`` on; the tokens of a request are spread evenly over its chunks."""
    moments = [moment - began for record in records for moment in record.text_times]
    if not moments:
        return []
    weights = [record.output_tokens / len(record.text_times) for record in records for _ in record.text_times]
    seconds = numpy.maximum(0, numpy.floor(moments)).astype(numpy.int64)
    return [float(tokens) for tokens in numpy.bincount(seconds, weights)]


def peak_tokens_per_second(records: Sequence[RequestRecord], began: float) -> float:
    """The most of these."""
    return max(tokens_in_each_second(records, began), default=0.0)
