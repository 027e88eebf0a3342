"""Which benchmark a saved result is of, and its figures in one shape for all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_bench.measure.intervals import BATCHES, Interval, mean_interval, time_intervals

Result = Mapping[str, Any]

_KINDS = {
    "latency": ("avg_latency",),
    "throughput": ("elapsed_time", "requests_per_second"),
    "startup": ("healthy_seconds", "first_token_seconds"),
    "serve": ("duration", "completed", "request_throughput"),
}
"""Benchmark -> keys that its results have, and no others."""

PHASE = "phase: "
"""What the names of a start's phases begin with."""


def kind_of(result: Result) -> str | None:
    """``serve`` (of a sweep, too), ``latency``, ``throughput`` or ``startup``; None: no result of a benchmark."""
    found = [kind for kind, keys in _KINDS.items() if all(key in result for key in keys)]
    if not found and any(key.startswith(("mean_", "median_")) for key in result) and "model_id" in result:
        return "serve"  # of another tool, or with fewer keys
    return found[0] if len(found) == 1 else None


def in_one_shape(result: Result) -> dict[str, Any]:
    """``result`` with each figure as one number, and the intervals that its iterations tell of."""
    shape = _SHAPES.get(kind_of(result) or "")
    return {**result} if shape is None else {**result, **shape(result)}


def _of_latency(result: Result) -> dict[str, Any]:
    seconds = [float(value) for value in result.get("latencies") or []]
    if len(seconds) < BATCHES:
        interval = mean_interval(seconds)
    else:
        low, high = time_intervals("x", [[value] for value in seconds], [])["mean_x_ms"]
        interval = (None if low is None else low / 1e3, None if high is None else high / 1e3)
    return {"confidence_intervals": {"avg_latency": interval}}


def _of_startup(result: Result) -> dict[str, Any]:
    """The means of all starts: the medians that are shown have no interval of their own."""
    runs: Sequence[Mapping[str, Any]] = result.get("runs") or []
    series = {name: [float(run[name]) for run in runs] for name in ("healthy_seconds", "first_token_seconds")}
    for name in result.get("phases") or {}:
        of_phase = [run["phases"]["path"].get(name) for run in runs]
        if None not in of_phase:
            series[PHASE + name] = [float(value) for value in of_phase]
    means = {name: sum(values) / len(values) for name, values in series.items() if values}
    intervals: dict[str, Interval] = {name: mean_interval(series[name]) for name in means}
    return {**means, "confidence_intervals": intervals}


_SHAPES: dict[str, Callable[[Result], dict[str, Any]]] = {"latency": _of_latency, "startup": _of_startup}
