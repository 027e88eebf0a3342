"""95 % confidence intervals of the figures of a load run.

What is measured under load depends on what came before it: requests share a queue and a batch, and the gaps of one
answer share its fate. The textbook's interval, which takes them for independent, is several times too narrow, and so
is a bootstrap that draws single values. These intervals are made by *batch means*: the requests, in the order of their
start, are cut into ten parts, and the spread of the parts tells the uncertainty of the whole. It is right where a part
is long beside the memory of the load; where neighbouring parts still resemble each other, the spread is enlarged
accordingly. Whole requests are dealt out, so gaps between tokens are never taken for more than their requests.

- A mean is a ratio of two sums (of values, and of their number), and its residuals are batched.
- A percentile needs no density: the share of values below it is a mean, and the interval of that share is read back
  through the ordered values (Woodruff's method), on the scale of the logit so that it stays within 0 and 1. An end with
  fewer than four independent values beyond it is None: the 99th percentile of a hundred requests has no upper bound.
- A throughput is the mean of its ten tenths of the run.

In a run with a trend, as when all requests are sent at once, the parts differ by the trend and the intervals are wide:
its mean depends on how long one measures. Only runs made again tell its spread. Nothing here is drawn at random.
"""

from collections.abc import Sequence

import numpy
import numpy.typing

from vllm_bench.measure.student import t_quantile

LEVEL = 0.95
"""How often an interval holds the true figure."""

BATCHES = 10
"""Few, so that each is long; a run of fewer requests has no intervals."""

Interval = tuple[float | None, float | None]
"""Lower and upper end; None: no bound can be told."""

_T = t_quantile((1 + LEVEL) / 2, BATCHES - 1)
_ENOUGH_BEYOND = 4
_HIGHEST_CORRELATION = 0.8

_Floats = numpy.typing.NDArray[numpy.float64]


def time_intervals(name: str, requests: Sequence[Sequence[float]], percents: Sequence[float]) -> dict[str, Interval]:
    """Intervals of mean, median and percentiles, in ms, under the keys of ``distribution.summary``.

    Args:
        requests: the values of each request in seconds (one, or its gaps), in the order of the requests' start.
    """
    requests = [values for values in requests if len(values)]
    if len(requests) < BATCHES:
        return {}
    values = 1e3 * numpy.concatenate([numpy.asarray(each, dtype=numpy.float64) for each in requests])
    batches = numpy.repeat(_batches(len(requests)), [len(each) for each in requests])
    found = {f"mean_{name}_ms": _of_mean(values, batches), f"median_{name}_ms": _of_quantile(values, batches, 0.5)}
    for percent in percents:
        found[f"p{percent:g}_{name}_ms"] = _of_quantile(values, batches, percent / 100)
    return found


def mean_interval(values: Sequence[float]) -> Interval:
    """Interval of the mean of values that have nothing to do with one another, such as starts of a server."""
    if len(values) < 2:
        return None, None
    each = numpy.asarray(values, dtype=numpy.float64)
    reach = t_quantile((1 + LEVEL) / 2, len(each) - 1) * float(each.std(ddof=1)) / len(each) ** 0.5
    return float(each.mean()) - reach, float(each.mean()) + reach


def rate_interval(moments: _Floats, amounts: _Floats, begin: float, seconds: float) -> Interval:
    """Interval of what came in a second, of ``amounts`` that came at ``moments`` within ``seconds`` from ``begin``."""
    tenths = numpy.clip((moments - begin) / seconds * BATCHES, 0, BATCHES - 1).astype(numpy.int64)
    sums = _sums(tenths, amounts)
    reach = _T * _error_of_total(sums - sums.mean())
    return max(0.0, float(sums.sum() - reach) / seconds), float(sums.sum() + reach) / seconds


def _batches(count: int) -> numpy.typing.NDArray[numpy.int64]:
    """The number of the part that each of ``count`` requests belongs to."""
    return numpy.arange(count) * BATCHES // count


def _sums(parts: numpy.typing.NDArray[numpy.int64], amounts: _Floats) -> _Floats:
    """Sum of the ``amounts`` of each part; shape [BATCHES]."""
    return numpy.bincount(parts, amounts, BATCHES).astype(numpy.float64)


def _error_of_total(residuals: _Floats) -> float:
    """Standard error of the sum of a run, from what each of its parts contributes beside its share; shape [BATCHES]."""
    square = float(residuals @ residuals)
    if square == 0.0:
        return 0.0
    likeness = min(max(0.0, float(residuals[1:] @ residuals[:-1]) / square), _HIGHEST_CORRELATION)
    return float(numpy.sqrt(BATCHES * square / (BATCHES - 1) * (1 + likeness) / (1 - likeness)))


def _of_mean(values: _Floats, batches: numpy.typing.NDArray[numpy.int64]) -> Interval:
    mean = values.mean()
    reach = _T * _error_of_total(_sums(batches, values - mean)) / len(values)
    lowest = 0.0 if values.min() >= 0 else -numpy.inf
    return max(lowest, float(mean - reach)), float(mean + reach)


def _of_quantile(values: _Floats, batches: numpy.typing.NDArray[numpy.int64], share: float) -> Interval:
    if not 0 < share < 1:
        return None, None
    ordered = numpy.sort(values)
    number = len(ordered)
    below = (values <= numpy.quantile(ordered, share)).astype(numpy.float64)
    error = _error_of_total(_sums(batches, below - below.mean())) / number
    spread = share * (1 - share)
    if number * min(share, 1 - share) < _ENOUGH_BEYOND * BATCHES:
        # The few values beyond it may lie evenly by chance; they are never surer than independent ones.
        error = max(error, float(numpy.sqrt(spread / number)))
    independent = spread / error**2 if error else float(number)
    middle, reach = numpy.log(share / (1 - share)), _T * error / spread
    low, high = (1 / (1 + numpy.exp(-(middle + side * reach))) for side in (-1, 1))
    first, last = int(numpy.floor(low * number)), int(numpy.ceil(high * number)) - 1
    return (
        float(ordered[min(first, number - 1)]) if independent * share >= _ENOUGH_BEYOND else None,
        float(ordered[min(last, number - 1)]) if independent * (1 - share) >= _ENOUGH_BEYOND else None,
    )
