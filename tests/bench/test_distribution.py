import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bench.distribution import percentile, summary

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 100))
def test_a_percentile_is_numpys(values: list[float], percent: float):
    assert percentile(values, percent) == pytest.approx(float(numpy.percentile(values, percent)), rel=1e-9, abs=1e-9)


def test_a_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_summary_is_in_milliseconds_under_the_usual_names():
    assert summary("ttft", [0.1, 0.3], [99]) == {
        "mean_ttft_ms": pytest.approx(200),
        "median_ttft_ms": pytest.approx(200),
        "std_ttft_ms": pytest.approx(100),
        "p99_ttft_ms": pytest.approx(298),
    }


def test_a_summary_of_nothing_has_its_names_and_no_values():
    assert summary("itl", [], [50, 99.9]) == dict.fromkeys(
        ["mean_itl_ms", "median_itl_ms", "std_itl_ms", "p50_itl_ms", "p99.9_itl_ms"]
    )
