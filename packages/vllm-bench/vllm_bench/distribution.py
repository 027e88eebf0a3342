"""Figures of a set of measured values."""

import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile ``percent`` (0 to 100) by linear interpolation between the two nearest values.

    Definition 7 of Hyndman and Fan (1996), the default of numpy. Raises ``ValueError`` when there is no value.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(name: str, seconds: Sequence[float], percents: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, standard deviation and percentiles of times in seconds, in milliseconds.

    The keys are ``mean_<name>_ms``, ``median_...``, ``std_...`` and ``p99_...``; without any value all are None.
    """
    keys = [f"{figure}_{name}_ms" for figure in ("mean", "median", "std")]
    keys += [f"p{percent:g}_{name}_ms" for percent in percents]
    if not seconds:
        return dict.fromkeys(keys)
    figures = [statistics.fmean(seconds), statistics.median(seconds), statistics.pstdev(seconds)]
    figures += [percentile(seconds, percent) for percent in percents]
    return {key: figure * 1e3 for key, figure in zip(keys, figures, strict=True)}
