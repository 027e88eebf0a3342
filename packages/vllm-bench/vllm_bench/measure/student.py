"""Quantiles of Student's t distribution, for any degrees of freedom from 1 on."""

from functools import cache

import numpy

_STEPS = 20_000


@cache
def t_quantile(probability: float, freedom: float) -> float:
    """The value below which a t-distributed number with ``freedom`` degrees is with ``probability`` (above 0.5).

    With t = sqrt(freedom) tan(a), the density is proportional to cos(a)^(freedom - 1) for a within a quarter turn:
    a bounded function on a bounded interval, which sums well.
    """
    angles = numpy.linspace(0.0, numpy.pi / 2, _STEPS + 1)
    density = numpy.cos(angles) ** (freedom - 1)
    area = numpy.concatenate([[0.0], numpy.cumsum(density[1:] + density[:-1])])
    angle = numpy.interp((2 * probability - 1) * area[-1], area, angles)
    return float(numpy.sqrt(freedom) * numpy.tan(angle))
