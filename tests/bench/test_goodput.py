"""Goodput of made-up records, worked out by hand."""

from argparse import ArgumentTypeError

import pytest

from vllm_bench.measure.goodput import num_good, slo
from vllm_bench.records import RequestRecord


def record(*text_times: float, ended: float, tokens: int) -> RequestRecord:
    return RequestRecord(0.0, 0.0, text_times=list(text_times), ended=ended, completion_tokens=tokens)


QUICK = record(0.1, 0.2, 0.3, ended=0.3, tokens=3)  # ttft 100, tpot 100, e2el 300
SLOW_BEGIN = record(0.5, 0.6, 0.7, ended=0.7, tokens=3)  # ttft 500, tpot 100, e2el 700
SHORT = record(0.1, ended=0.1, tokens=1)  # no tpot
WITHOUT_TEXT = record(ended=0.2, tokens=2)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({"ttft": 200}, [QUICK, SHORT]),
        ({"tpot": 100.001}, [QUICK, SLOW_BEGIN, SHORT, WITHOUT_TEXT]),
        ({"tpot": 99}, [SHORT, WITHOUT_TEXT]),
        ({"e2el": 250}, [SHORT, WITHOUT_TEXT]),
        ({"ttft": 600, "e2el": 250}, [SHORT]),
    ],
)
def test_a_request_is_good_when_it_keeps_every_limit(limits: dict[str, float], good: list[RequestRecord]):
    everything = [QUICK, SLOW_BEGIN, SHORT, WITHOUT_TEXT]
    assert num_good(everything, limits) == len(good)
    assert num_good(good, limits) == len(good)


def test_a_limit_is_a_metric_and_milliseconds():
    assert slo("ttft:200") == ("ttft", 200.0)


@pytest.mark.parametrize("text", ["itl:5", "ttft", "ttft:", "ttft:-1", "ttft:inf", "ttft:nan", "200"])
def test_anything_else_is_refused(text: str):
    with pytest.raises(ArgumentTypeError, match="ttft:200"):
        slo(text)
