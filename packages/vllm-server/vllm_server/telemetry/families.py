"""Makes families of numbers and histograms."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from vllm_engine.metrics.histogram import Histogram
from vllm_server.telemetry.snapshot import Combine, Family, Kind, series_key

Labels = Mapping[str, str]


class Labelled:
    """Families whose series all carry some labels, those of ``more`` beside them."""

    def __init__(self, labels: Labels) -> None:
        self._labels = dict(labels)

    def gauge(self, name: str, text: str, value: float, combine: Combine) -> Family:
        """One number that goes up and down."""
        return self._family(name, "gauge", text, combine, {key_of(name, self._labels): value})

    def counter(self, name: str, text: str, value: float, combine: Combine = "sum") -> Family:
        """One number that only grows. The name ends in ``_total``."""
        return self._family(name, "counter", text, combine, {key_of(name, self._labels): value})

    def by(
        self, kind: Kind, name: str, text: str, label: str, values: Mapping[str, float], combine: Combine = "sum"
    ) -> Family:
        """Numbers told apart by one more label."""
        series = {key_of(name, {**self._labels, label: value}): number for value, number in values.items()}
        return self._family(name, kind, text, combine, series)

    def histogram(self, name: str, text: str, histogram: Histogram, combine: Combine = "sum") -> Family:
        """A histogram without more labels."""
        return self._family(name, "histogram", text, combine, histogram_series(name, self._labels, histogram))

    def _family(self, name: str, kind: Kind, text: str, combine: Combine, series: dict[str, float]) -> Family:
        return Family(name, kind, text, combine, series)


def key_of(name: str, labels: Labels) -> str:
    """The key of a series."""
    return series_key(name, tuple(labels), tuple(labels.values()))


def histogram_series(name: str, labels: Labels, histogram: Histogram) -> dict[str, float]:
    """Prometheus' series: how many values are at most each bound, how many there are, and their sum."""
    keys, count_key, sum_key = _histogram_keys(name, tuple(labels), tuple(labels.values()), histogram.bounds)
    counts = list(accumulate(histogram.values()))
    series: dict[str, float] = dict(zip(keys, counts, strict=True))
    series[count_key] = counts[-1]
    series[sum_key] = histogram.sum
    return series


@lru_cache(maxsize=4096)
def _histogram_keys(
    name: str, labels: Sequence[str], values: Sequence[str], bounds: Sequence[float]
) -> tuple[tuple[str, ...], str, str]:
    """Keys of the buckets, of the count and of the sum: they are most of the work of a page, and always the same."""
    keys = tuple(
        series_key(f"{name}_bucket", (*labels, "le"), (*values, bound))
        for bound in (*map(floatToGoString, bounds), "+Inf")
    )
    return keys, series_key(f"{name}_count", labels, values), series_key(f"{name}_sum", labels, values)
