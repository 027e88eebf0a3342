"""The moments of requests, held to the distributions that they are said to have.

The seeds are fixed, so nothing here can fail by chance; the bounds are four standard errors of the estimate.
"""

import itertools
import math

import numpy
import pytest

from vllm_bench.workload.arrivals import offsets, ramped
from vllm_bench.workload.ramp_up import RampUp
from vllm_bench.workload.seeds import generator

COUNT = 20_000
RATE = 40.0


def gaps(burstiness: float, seed: int) -> numpy.ndarray:
    moments = itertools.islice(offsets(RATE, burstiness, None, generator(seed, "arrivals")), COUNT)
    return numpy.diff([0.0, *moments])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_gaps_have_the_mean_and_the_variance_of_their_gamma_distribution(burstiness: float, seed: int):
    found = gaps(burstiness, seed)
    mean, variance = 1 / RATE, 1 / (RATE**2 * burstiness)
    excess_kurtosis = 6 / burstiness
    assert found.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / COUNT))
    assert found.var() == pytest.approx(variance, abs=4 * variance * math.sqrt((2 + excess_kurtosis) / COUNT))


def test_a_burstiness_of_1_is_a_poisson_process():
    found = numpy.sort(gaps(1.0, 2))
    # The largest distance between the two distributions (Kolmogorov and Smirnov), at the level of 1 %.
    expected = 1 - numpy.exp(-RATE * found)
    steps = numpy.arange(COUNT + 1) / COUNT
    distance = max(numpy.abs(steps[1:] - expected).max(), numpy.abs(steps[:-1] - expected).max())
    assert distance < 1.63 / math.sqrt(COUNT)
    # As many requests in a second as Poisson says: the variance of the counts is their mean; gaps know of no others.
    counts = numpy.histogram(numpy.cumsum(gaps(1.0, 2)), numpy.arange(0, COUNT // RATE))[0]
    assert counts.mean() == pytest.approx(RATE, abs=4 * math.sqrt(RATE / len(counts)))
    assert counts.var() == pytest.approx(RATE, abs=4 * RATE * math.sqrt(2 / len(counts)))
    plain = gaps(1.0, 2)
    assert abs(numpy.corrcoef(plain[1:], plain[:-1])[0, 1]) < 4 / math.sqrt(COUNT)


def rising(strategy: str, start: float, end: float, seconds: float, burstiness: float, seed: int = 0) -> numpy.ndarray:
    """Moments of all requests of a growth."""
    ramp = RampUp(strategy, start, end, seconds)
    count = round(ramp.requests(seconds))
    return numpy.array(list(ramped(burstiness, count, ramp, generator(seed, "arrivals"))))


def expected_requests(strategy: str, start: float, end: float, seconds: float, begin: float, stop: float) -> float:
    """The integral of the rate, by adding up slices of it."""
    slices = numpy.linspace(begin, stop, 2001)
    shares = (slices[1:] + slices[:-1]) / 2 / seconds
    rates = start + (end - start) * shares if strategy == "linear" else start * (end / start) ** shares
    return float(rates.sum() * (slices[1] - slices[0]))


@pytest.mark.parametrize(
    ("strategy", "start", "end"),
    [("linear", 0, 100), ("linear", 20, 60), ("linear", 30, 30), ("exponential", 1, 100), ("exponential", 30, 30)],
)
@pytest.mark.parametrize("burstiness", [math.inf, 1.0])
def test_a_growing_rate_is_kept_in_every_window(strategy: str, start: float, end: float, burstiness: float):
    seconds = 50.0
    moments = rising(strategy, start, end, seconds, burstiness)
    assert (numpy.diff(moments) >= 0).all()
    assert moments[-1] == pytest.approx(seconds, rel=0.01)
    edges = numpy.linspace(0, seconds, 11)
    counts = numpy.histogram(moments, edges)[0]
    for count, begin, stop in zip(counts, edges, edges[1:], strict=False):
        expected = expected_requests(strategy, start, end, seconds, begin, stop)
        assert count == pytest.approx(expected, abs=1.5 if math.isinf(burstiness) else 4 * math.sqrt(expected) + 1)


def test_after_the_growth_the_final_rate_stays():
    ramp = RampUp("linear", 0, 10, 4.0)
    moments = itertools.islice(ramped(math.inf, None, ramp, generator(0, "arrivals")), 40)
    later = [moment for moment in moments if moment > 4]
    assert numpy.diff(later) == pytest.approx(numpy.full(len(later) - 1, 0.1))
    assert len(later) == 20
