"""How often intervals hold the truth, on distributions whose truth is known."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy
import pytest

from vllm_bench.measure.intervals import rate_interval, time_intervals
from vllm_bench.measure.student import t_quantile

RUNS = 300
MARGIN = 0.03
"""Some 2.4 standard errors of a share of 95 % in so many runs."""
Z90 = NormalDist().inv_cdf(0.9)

Draw = Callable[[numpy.random.Generator, int], numpy.ndarray]


def autoregressive(rng: numpy.random.Generator, count: int, memory: float) -> numpy.ndarray:
    """Standard normal values, each of which keeps ``memory`` of the one before."""
    noise = rng.normal(size=count) * math.sqrt(1 - memory**2)
    values = numpy.empty(count)
    last = rng.normal()
    for number in range(count):
        last = values[number] = memory * last + noise[number]
    return values


def coverage(draw: Draw, count: int, truths: dict[str, float], seed: int) -> dict[str, float]:
    """Share of the runs whose interval holds the truth; an end that is None holds everything."""
    rng = numpy.random.default_rng(seed)
    hits = dict.fromkeys(truths, 0)
    for _ in range(RUNS):
        found = time_intervals("x", [[value] for value in draw(rng, count).tolist()], [90])
        for key, truth in truths.items():
            low, high = found[key]
            hits[key] += (low is None or low <= 1e3 * truth) and (high is None or 1e3 * truth <= high)
    return {key: hit / RUNS for key, hit in hits.items()}


@pytest.mark.parametrize(
    ("draw", "mean", "median", "p90"),
    [
        (lambda rng, count: rng.normal(10, 1, count), 10, 10, 10 + Z90),
        (lambda rng, count: rng.exponential(1, count), 1, math.log(2), math.log(10)),
        (lambda rng, count: rng.lognormal(0, 0.5, count), math.exp(0.125), 1, math.exp(0.5 * Z90)),
        (lambda rng, count: 10 + autoregressive(rng, count, 0.7), 10, 10, 10 + Z90),
        (lambda rng, count: numpy.exp(autoregressive(rng, count, 0.8) / 2), math.exp(0.125), 1, math.exp(Z90 / 2)),
    ],
    ids=["normal", "exponential", "lognormal", "autocorrelated", "skewed and autocorrelated"],
)
def test_intervals_hold_the_truth_in_95_of_100_runs(draw: Draw, mean: float, median: float, p90: float):
    truths = {"mean_x_ms": mean, "median_x_ms": median, "p90_x_ms": p90}
    for key, share in coverage(draw, 500, truths, seed=1).items():
        assert 0.95 - MARGIN <= share <= 0.995, key


def test_what_takes_requests_for_independent_does_not():
    """The reason for batches: the textbook's interval of an autocorrelated mean."""
    rng = numpy.random.default_rng(2)
    hits = 0
    for _ in range(RUNS):
        values = autoregressive(rng, 500, 0.8)
        hits += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(500)
    assert hits / RUNS < 0.6
    drawn = coverage(lambda rng, count: autoregressive(rng, count, 0.8), 500, {"mean_x_ms": 0.0}, seed=2)
    assert drawn["mean_x_ms"] >= 0.95 - MARGIN


def test_gaps_are_not_taken_for_more_than_their_requests():
    """All gaps of a request are the same: a hundred of each tell no more than one."""
    rng = numpy.random.default_rng(3)
    hits = 0
    for _ in range(RUNS):
        low, high = time_intervals("itl", [[value] * 100 for value in rng.exponential(1, 200)], [])["mean_itl_ms"]
        hits += low <= 1e3 <= high
    assert 0.95 - MARGIN <= hits / RUNS <= 0.99


def test_they_are_as_wide_as_those_of_a_bootstrap_of_blocks():
    rng = numpy.random.default_rng(4)
    values = 5 + autoregressive(rng, 4000, 0.6)
    starts = rng.integers(4000 - 80, size=(2000, 50))
    means = numpy.stack([values[start[:, None] + numpy.arange(80)].mean() for start in starts])
    bootstrap = numpy.diff(numpy.percentile(means, [2.5, 97.5]))[0]
    low, high = time_intervals("x", [[value] for value in values], [])["mean_x_ms"]
    assert (high - low) / 1e3 == pytest.approx(bootstrap, rel=0.35)


def test_a_percentile_beyond_what_so_few_requests_can_tell_has_no_upper_end():
    rng = numpy.random.default_rng(5)
    few = time_intervals("x", [[value] for value in rng.exponential(1, 100)], [99, 100])
    many = time_intervals("x", [[value] for value in rng.exponential(1, 5000)], [99])
    assert few["p99_x_ms"][1] is None
    assert few["p100_x_ms"] == (None, None)
    low, high = many["p99_x_ms"]
    assert low < 1e3 * math.log(100) < high


def test_less_than_ten_requests_have_no_intervals():
    assert time_intervals("x", [[1.0]] * 9, [99]) == {}
    assert time_intervals("x", [[], *[[1.0]] * 9], [99]) == {}
    assert time_intervals("x", [[1.0]] * 10, [])["mean_x_ms"] == (1e3, 1e3)


def test_the_interval_of_a_rate_holds_it():
    rng = numpy.random.default_rng(6)
    hits = 0
    for _ in range(RUNS):
        moments = 100 + rng.uniform(0, 20, rng.poisson(20 * 50))
        low, high = rate_interval(moments, numpy.ones(len(moments)), 100.0, 20.0)
        hits += low <= 50 <= high
    assert 0.95 - MARGIN <= hits / RUNS <= 0.99


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_quantiles_of_t_are_those_of_the_tables(freedom: int, value: float):
    assert t_quantile(0.975, freedom) == pytest.approx(value, rel=1e-4)
