"""A histogram that costs one bisection per value: values come with every token, readers every few seconds."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence


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

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' buckets: upper bound as text, and how many values are at most that."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        return buckets


def one_two_five(low: float, high: float) -> list[float]:
    """The ladder ..., 1, 2, 5, 10, 20, 50, ... between two of its own steps."""
    steps = [float(f"{digit}e{exponent}") for exponent in range(-6, 10) for digit in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]
