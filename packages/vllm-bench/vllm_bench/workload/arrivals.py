"""When requests are due."""

import itertools
import math
from collections.abc import Iterator

import numpy

from vllm_bench.workload.ramp_up import RampUp

_CHUNK = 1024


def offsets(rate: float, burstiness: float, count: int | None, rng: numpy.random.Generator) -> Iterator[float | None]:
    """Seconds from the begin of a run at which its requests are due; None each for an infinite rate.

    Gaps are gamma-distributed with mean ``1 / rate``: 1 is a Poisson process, less comes in bursts, more is steadier,
    infinity is a constant rate. The first request is due after a gap, too. With a ``count`` they are stretched so that
    the last is due at ``count / rate``: else some hundred requests would miss the rate that was asked for by
    ``1 / sqrt(count)``.

    Args:
        rate: requests per second.
        burstiness: shape of the gamma distribution.
        count: how many; None: without end.
    """
    if math.isinf(rate):
        return itertools.repeat(None) if count is None else itertools.repeat(None, count)
    if count is None:
        return _endless(rate, burstiness, rng)
    moments = numpy.cumsum(_gaps(rate, burstiness, count, rng))
    return iter((moments * (count / rate / moments[-1])).tolist())


def ramped(burstiness: float, count: int | None, ramp: RampUp, rng: numpy.random.Generator) -> Iterator[float]:
    """The same for a rate that grows; ``burstiness`` is that of gaps in expected requests instead of seconds."""
    for requests in offsets(1.0, burstiness, count, rng):
        yield ramp.moment(requests or 0.0)


def _endless(rate: float, burstiness: float, rng: numpy.random.Generator) -> Iterator[float]:
    begin = 0.0
    while True:
        moments = begin + numpy.cumsum(_gaps(rate, burstiness, _CHUNK, rng))
        yield from moments.tolist()
        begin = float(moments[-1])


def _gaps(rate: float, burstiness: float, count: int, rng: numpy.random.Generator) -> "numpy.ndarray":
    if math.isinf(burstiness):
        return numpy.full(count, 1 / rate)
    return rng.gamma(burstiness, 1 / (rate * burstiness), count)
