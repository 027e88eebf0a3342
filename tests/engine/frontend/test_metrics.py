"""The periodic line in the log, and the numbers of a request."""

import logging

import pytest

from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.logging_stats import LoggingStatLogger
from vllm_engine.metrics.stats import RequestStats

REQUEST = RequestStats("r", "stop", 5, 3, 0, 0, 1, 16, 1.0, inter_token_latencies=[0.1, 0.3])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def busy(running: int = 2, queries: int = 0, hits: int = 0) -> SchedulerStats:
    return SchedulerStats(running, 7, 0.25, queries, hits)


def test_one_line_every_ten_seconds_tells_of_the_time_since_the_last(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    logger = LoggingStatLogger(clock=clock)
    logger.on_step(busy(queries=1000, hits=900), 0, 0)
    for _ in range(25):
        clock.now += 1.0
        logger.on_step(busy(queries=1100, hits=950), 20, 30)
        logger.on_finished(REQUEST)
    first, second = caplog.messages
    assert first == (
        "prompt 20.0 tokens/s, generation 30.0 tokens/s, 9 finished, 2 running, 7 waiting, "
        "KV cache 25.0 %, prefix cache hits 50.0 %"
    )
    assert "prompt 20.0" in second
    assert "hits 0.0 %" in second


def test_an_idle_time_is_not_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = LoggingStatLogger(clock=clock)
    logger.on_step(SchedulerStats(), 5, 5)
    clock.now += 3600
    logger.on_step(busy(), 100, 100)
    assert caplog.messages == []
    clock.now += 10
    logger.on_step(busy(), 100, 100)
    assert "prompt 20.0 tokens/s" in caplog.messages[0]


def test_a_step_longer_than_the_interval_is_told_as_well(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = LoggingStatLogger(clock=clock)
    logger.on_step(busy(), 0, 0)
    clock.now += 50
    logger.on_step(busy(), 100, 50)
    assert "prompt 2.0 tokens/s, generation 1.0 tokens/s" in caplog.messages[0]


def test_the_mean_time_per_token_is_that_between_tokens() -> None:
    assert REQUEST.mean_time_per_output_token == pytest.approx(0.2)
    assert RequestStats("r", "stop", 5, 1, 0, 0, 1, 16, 1.0).mean_time_per_output_token is None
