"""How much a figure of new runs is of that of base runs, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_bench.measure.intervals import LEVEL, Interval
from vllm_bench.measure.student import t_quantile


@dataclass(frozen=True, slots=True)
class Ratio:
    """New over base."""

    value: float
    low: float | None
    high: float | None
    """Ends of its 95 % interval; None: no bound can be told."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A figure of one run, with its interval within that run if it has one."""

    value: float
    interval: Interval = (None, None)


def ratio(base: Sequence[Observed], new: Sequence[Observed]) -> Ratio | None:
    """The ratio of the geometric means; None where a figure is not above 0.

    Logarithms are compared, as machines and loads change figures by factors.

    - With several runs on a side, the spread between the runs of a side is what counts (Student's t, the same spread on
      both sides): it has in it what a single run cannot know, such as the machine's mood and the server's start.
    - With one run each, the runs' own intervals are combined (each side's reach as far as its own interval goes, added
      in quadrature). Two runs of the same may differ by more.
    """
    if any(observed.value <= 0 for observed in (*base, *new)):
        return None
    logs = [[math.log(observed.value) for observed in side] for side in (base, new)]
    means = [math.fsum(side) / len(side) for side in logs]
    difference = means[1] - means[0]
    freedom = len(base) + len(new) - 2
    if freedom == 0:
        low, high = _combined(base[0], new[0], difference)
    else:
        squares = math.fsum((value - mean) ** 2 for side, mean in zip(logs, means, strict=True) for value in side)
        error = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(new)))
        reach = t_quantile((1 + LEVEL) / 2, freedom) * error
        low, high = difference - reach, difference + reach
    return Ratio(math.exp(difference), None if low is None else math.exp(low), None if high is None else math.exp(high))


def _combined(base: Observed, new: Observed, difference: float) -> tuple[float | None, float | None]:
    """Ends of the interval of log new - log base. A lower end needs the new one's lower and the base's upper one."""
    below, above = _reaches(new)
    base_below, base_above = _reaches(base)
    low = None if below is None or base_above is None else difference - math.hypot(below, base_above)
    high = None if above is None or base_below is None else difference + math.hypot(above, base_below)
    return low, high


def _reaches(observed: Observed) -> tuple[float | None, float | None]:
    """How far down and up the interval goes, in logarithms."""
    low, high = observed.interval
    down = math.log(observed.value / low) if low is not None and low > 0 else None
    return down, None if high is None else math.log(high / observed.value)
