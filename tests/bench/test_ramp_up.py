"""A growing request rate: its options, and the moments at which it passes whole numbers."""

from datetime import datetime

import pytest

from tests.bench.workload_items import items_of, options_of
from vllm_bench.workload.ramp_up import RampUp, change_events
from vllm_cli.command import CommandError

LINEAR = ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", 2, "--ramp-up-end-rps", 6]


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_moments_are_the_inverse_of_requests(strategy: str):
    ramp = RampUp(strategy, 2.0, 50.0, 8.0)
    for moment in (0.0, 0.1, 3.0, 7.9, 8.0):
        assert ramp.moment(ramp.requests(moment)) == pytest.approx(moment, abs=1e-9)
    assert (ramp.rate(0.0), ramp.rate(8.0), ramp.rate(99.0)) == pytest.approx((2.0, 50.0, 50.0))


def test_whole_rates_are_noted_when_they_are_reached():
    linear = RampUp("linear", 2.5, 6.0, 7.0)
    assert linear.changes(99.0) == [(0.0, 2.5), *((pytest.approx(2 * (rate - 2.5)), rate) for rate in (3, 4, 5, 6))]
    assert linear.changes(3.0) == [(0.0, 2.5), (pytest.approx(1.0), 3), (pytest.approx(3.0), 4)]
    exponential = RampUp("exponential", 1.0, 8.0, 3.0)
    assert [(at, rate) for at, rate in exponential.changes(3.0) if rate in (2, 4, 8)] == [
        (pytest.approx(1.0), 2),
        (pytest.approx(2.0), 4),
        (pytest.approx(3.0), 8),
    ]


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_the_last_rate_is_noted_whatever_the_clock_shows(strategy: str):
    """The run's length is the difference of two readings of a clock, which rounds it up or down."""
    options = [*LINEAR, "--ramp-up-strategy", strategy, "--num-prompts", 23]
    ramp = RampUp.of(options_of(*options))
    last = items_of(*options)[-1].offset
    for begin in (0.1 * 1.7**number for number in range(40)):
        assert [rate for _, rate in ramp.changes(begin + last - begin)] == [2, 3, 4, 5, 6], begin


def test_the_end_is_reached_with_the_last_request_or_the_last_second():
    ramp = RampUp.of(options_of(*LINEAR, "--num-prompts", 20))
    assert ramp == RampUp("linear", 2.0, 6.0, 5.0)
    assert items_of(*LINEAR, "--num-prompts", 20)[-1].offset == pytest.approx(5.0)
    assert RampUp.of(options_of(*LINEAR, "--duration", 9)) == RampUp("linear", 2.0, 6.0, 9.0)
    assert RampUp.of(options_of("--num-prompts", 20)) is None


def test_events_are_times_of_day():
    now = 1_700_000_000.25
    assert change_events([(0.0, 1.0), (2.5, 2)], now) == [
        {"rps": 1.0, "timestamp": datetime.fromtimestamp(now).isoformat()},
        {"rps": 2, "timestamp": datetime.fromtimestamp(now + 2.5).isoformat()},
    ]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--ramp-up-start-rps", 1], "need --ramp-up-strategy"),
        (LINEAR[:4], "needs --ramp-up-start-rps and --ramp-up-end-rps"),
        ([*LINEAR, "--request-rate", 3], "no --request-rate"),
        ([*LINEAR, "--ramp-up-start-rps", 7], "is above"),
        ([*LINEAR, "--ramp-up-strategy", "exponential", "--ramp-up-start-rps", 0], "by no factor"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list, what: str):
    with pytest.raises(CommandError, match=what) as error:
        options_of(*options)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "option", [["--ramp-up-end-rps", "0"], ["--ramp-up-start-rps", "-1"], ["--ramp-up-strategy", "x"]]
)
def test_what_is_out_of_range_is_refused(option: list[str], capsys):
    with pytest.raises(SystemExit):
        options_of(*option)
    assert option[0] in capsys.readouterr().err
