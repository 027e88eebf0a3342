"""Figures of a set of measured times."""

from collections.abc import Sequence

import numpy


def summary(name: str, seconds: Sequence[float], percents: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, standard deviation and percentiles of times in seconds, in milliseconds.

    The keys are ``mean_<name>_ms``, ``median_...``, ``std_...`` and ``p99_...``; without any value all are None.
    Percentiles are interpolated linearly between the two nearest values.
    """
    keys = [f"{figure}_{name}_ms" for figure in ("mean", "median", "std")]
    keys += [f"p{percent:g}_{name}_ms" for percent in percents]
    if not len(seconds):
        return dict.fromkeys(keys)
    values = numpy.asarray(seconds, dtype=numpy.float64) * 1e3
    figures = [values.mean(), numpy.median(values), values.std(), *numpy.percentile(values, percents)]
    return {key: float(figure) for key, figure in zip(keys, figures, strict=True)}
