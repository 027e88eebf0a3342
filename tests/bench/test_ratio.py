"""Ratios of figures whose true ratio is known."""

import numpy
import pytest

from vllm_bench.measure.intervals import time_intervals
from vllm_bench.measure.ratio import Observed, ratio

RUNS = 300


def observed(values: numpy.ndarray) -> Observed:
    return Observed(1e3 * float(values.mean()), time_intervals("x", [[value] for value in values], [])["mean_x_ms"])


@pytest.mark.parametrize("true", [1.0, 1.2])
def test_the_interval_of_two_runs_holds_their_true_ratio(true: float):
    rng = numpy.random.default_rng(1)
    hits = 0
    for _ in range(RUNS):
        found = ratio([observed(rng.exponential(1, 300))], [observed(true * rng.exponential(1, 300))])
        hits += found.low <= true <= found.high
    assert 0.92 <= hits / RUNS <= 0.99


@pytest.mark.parametrize("runs", [2, 3, 6])
def test_with_several_runs_a_side_the_spread_between_them_counts(runs: int):
    """Each run is off by its own factor, of which a single run knows nothing."""
    rng = numpy.random.default_rng(2)
    hits = 0
    for _ in range(RUNS):
        base, new = rng.lognormal(0, 0.05, (2, runs))
        found = ratio([Observed(value, (value, value)) for value in base], [Observed(1.1 * value) for value in new])
        hits += found.low <= 1.1 <= found.high
    assert 0.92 <= hits / RUNS <= 0.98


def test_the_ratio_is_that_of_the_geometric_means():
    found = ratio([Observed(1.0), Observed(4.0)], [Observed(6.0)])
    assert found.value == pytest.approx(3.0)
    assert found.low < 3.0 < found.high


def test_without_an_interval_there_is_a_ratio_and_no_bound():
    found = ratio([Observed(2.0)], [Observed(3.0, (2.5, None))])
    assert (found.value, found.low, found.high) == (pytest.approx(1.5), None, None)


def test_an_end_needs_only_its_own_sides():
    found = ratio([Observed(2.0, (1.0, None))], [Observed(2.0, (1.0, 4.0))])
    assert found.low is None
    assert found.high == pytest.approx(2 ** (2**0.5))


def test_what_is_not_above_0_has_no_ratio():
    assert ratio([Observed(0.0)], [Observed(1.0)]) is None
