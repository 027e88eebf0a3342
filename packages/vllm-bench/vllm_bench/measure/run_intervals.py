"""Which figures of a run have an interval, and what it is made of."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy

from vllm_bench.load.run import LoadRun
from vllm_bench.measure.goodput import keeps
from vllm_bench.measure.intervals import BATCHES, LEVEL, Interval, rate_interval, time_intervals
from vllm_bench.records import RequestRecord

_TIMES: dict[str, Callable[[RequestRecord], Sequence[float]]] = {
    "ttft": lambda record: [record.ttft] if record.text_times else [],
    "tpot": lambda record: [] if record.tpot is None else [record.tpot],
    "itl": lambda record: record.itls,
    "e2el": lambda record: [record.latency],
    "client_queue_time": lambda record: [record.queue_seconds],
    "e2el_including_client_queue": lambda record: [record.ended - record.arrival],
}
"""Name -> the values of a request, in seconds."""


def run_intervals(
    run: LoadRun, percents: Sequence[float], figures: Collection[str], limits: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """``confidence_level``, and ``confidence_intervals``: figure -> its ends, None where no bound can be told.

    Args:
        figures: keys of the result; only these get intervals.
        limits: those of the goodput; without any it has no interval.
    """
    done = [record for record in run.records if record.error is None]
    found: dict[str, Interval] = {}
    for name, values in _TIMES.items():
        if f"mean_{name}_ms" in figures:
            found |= time_intervals(name, [values(record) for record in done], percents)
    if len(done) >= BATCHES and run.seconds > 0:
        found |= {name: each for name, each in _throughputs(run, done, limits or {}).items() if name in figures}
    return {"confidence_level": LEVEL, "confidence_intervals": found}


def _throughputs(run: LoadRun, done: Sequence[RequestRecord], limits: Mapping[str, float]) -> dict[str, Interval]:
    """What a request brings is spread evenly over its chunks; where there is none, it comes with its end."""
    times = [record.text_times or [record.ended] for record in done]
    moments = numpy.concatenate([numpy.asarray(each) for each in times])
    input_tokens = [record.prompt_len if record.prompt_tokens is None else record.prompt_tokens for record in done]
    output_tokens = [record.output_tokens for record in done]
    amounts: dict[str, Sequence[float]] = {
        "request_throughput": [1.0] * len(done),
        "input_sequence_throughput": [record.num_inputs for record in done],
        "output_throughput": output_tokens,
    }
    if limits:
        amounts["request_goodput"] = [float(keeps(record, limits)) for record in done]
    if None not in input_tokens:
        amounts["total_token_throughput"] = [
            (tokens or 0) + output for tokens, output in zip(input_tokens, output_tokens, strict=True)
        ]
    chunks = numpy.array([len(each) for each in times])
    return {
        name: rate_interval(moments, numpy.repeat(numpy.asarray(each) / chunks, chunks), run.began, run.seconds)
        for name, each in amounts.items()
    }
