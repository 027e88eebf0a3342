"""A histogram that costs one bisection per value: values come with every token, readers every few seconds."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from vllm_server.telemetry.snapshot import series_key


class Histogram:
    """Counts of values by upper bound. ``bounds`` ascend; what is above the last one counts as infinite."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float | None) -> None:
        """Count one value; None is no value."""
        if value is not None:
            self._counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count several values."""
        for value in values:
            self.observe(value)

    def series(self, name: str, labels: Sequence[str], values: Sequence[str]) -> dict[str, float]:
        """Prometheus' series: how many values are at most each bound, how many there are, and their sum."""
        bounds = (*map(floatToGoString, self.bounds), "+Inf")
        counts = list(accumulate(self._counts))
        series: dict[str, float] = {
            series_key(f"{name}_bucket", (*labels, "le"), (*values, bound)): count
            for bound, count in zip(bounds, counts, strict=True)
        }
        series[series_key(f"{name}_count", labels, values)] = counts[-1]
        series[series_key(f"{name}_sum", labels, values)] = self.sum
        return series


def one_two_five(low: float, high: float) -> list[float]:
    """The ladder ..., 1, 2, 5, 10, 20, 50, ... between two of its own steps."""
    steps = [float(f"{digit}e{exponent}") for exponent in range(-6, 10) for digit in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]
