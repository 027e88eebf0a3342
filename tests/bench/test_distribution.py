import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bench.measure.distribution import summary


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50), st.integers(0, 100))
def test_a_summary_is_in_milliseconds_under_the_usual_names(seconds: list[float], percent: int):
    figures = summary("ttft", seconds, [percent])
    ordered = sorted(seconds)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    assert figures == {
        "mean_ttft_ms": pytest.approx(statistics.fmean(seconds) * 1e3),
        "median_ttft_ms": pytest.approx(statistics.median(seconds) * 1e3),
        "std_ttft_ms": pytest.approx(statistics.pstdev(seconds) * 1e3, abs=1e-3),
        f"p{percent}_ttft_ms": pytest.approx((below + (above - below) * (place % 1)) * 1e3),
    }


def test_a_summary_of_nothing_has_its_names_and_no_values():
    assert summary("itl", [], [50, 99.9]) == dict.fromkeys(
        ["mean_itl_ms", "median_itl_ms", "std_itl_ms", "p50_itl_ms", "p99.9_itl_ms"]
    )
