import itertools
import math

import numpy
import pytest

from vllm_bench.workload.arrivals import offsets
from vllm_bench.workload.seeds import generator


def gaps(rate: float, burstiness: float, count: int | None = 4000) -> numpy.ndarray:
    moments = itertools.islice(offsets(rate, burstiness, count, generator(1, "arrivals")), 4000)
    return numpy.diff([0.0, *moments])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("count", [4000, None])
def test_gaps_have_the_mean_and_the_spread_of_a_gamma_distribution(burstiness: float, count: int | None):
    found = gaps(50.0, burstiness, count)
    assert found.mean() == pytest.approx(1 / 50, rel=0.1)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)
    assert (found >= 0).all()


def test_a_counted_schedule_has_exactly_the_rate_that_was_asked_for():
    assert list(offsets(8.0, 1.0, 16, generator(0, "arrivals")))[-1] == pytest.approx(2.0)


def test_infinite_burstiness_is_a_constant_rate():
    assert gaps(10.0, math.inf) == pytest.approx(numpy.full(4000, 0.1))


def test_an_infinite_rate_has_no_schedule():
    assert list(offsets(math.inf, 1.0, 3, generator(0, "arrivals"))) == [None] * 3
    assert list(itertools.islice(offsets(math.inf, 1.0, None, generator(0, "arrivals")), 2)) == [None, None]


def test_seeds_make_the_same_schedule_and_purposes_others():
    def schedule(seed: int, purpose: str) -> list[float | None]:
        return list(offsets(5.0, 1.0, 9, generator(seed, purpose)))

    assert schedule(3, "arrivals") == schedule(3, "arrivals")
    assert schedule(3, "arrivals") != schedule(4, "arrivals")
    assert schedule(3, "arrivals") != schedule(3, "prompts")
