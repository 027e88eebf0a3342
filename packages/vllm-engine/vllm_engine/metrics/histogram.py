"""A histogram that costs one bisection per value: values come with every token, readers every few seconds."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from vllm_engine.messages import HistogramCounts


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
        bounds, counts = self.bounds, self._counts
        total = 0.0
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        self.sum += total

    def counts(self) -> HistogramCounts:
        """What was counted until now, to send."""
        return HistogramCounts(self._counts.copy(), self.sum)

    def take(self, counts: HistogramCounts | None) -> None:
        """Become what another histogram of the same bounds has counted; None and other bounds change nothing."""
        if counts is not None and len(counts.counts) == len(self._counts):
            self._counts, self.sum = counts.counts, counts.sum

    def values(self) -> list[int]:
        """Values counted for each bound, and above the last one. Not cumulative."""
        return self._counts
