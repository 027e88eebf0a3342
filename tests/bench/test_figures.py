"""Figures of made-up records, worked out by hand."""

import pytest

from vllm_bench.load.run import LoadRun
from vllm_bench.measure.figures import load_figures, queue_figures
from vllm_bench.measure.over_time import tokens_in_each_second
from vllm_bench.measure.verdict import verdict
from vllm_bench.records import RequestRecord


def record(arrival: float, *text_times: float, **more) -> RequestRecord:
    """Sent at once, and over with its last text."""
    ended = text_times[-1] if text_times else arrival
    settings = {"start": arrival, "sent": arrival, "ended": ended, "text_times": list(text_times), **more}
    return RequestRecord(arrival, **settings)


def test_times_count_from_when_a_request_should_have_been_sent():
    late = record(10.0, 10.5, 10.6, 10.9, start=10.1, sent=10.2, ended=11.0, completion_tokens=3)
    assert late.ttft == pytest.approx(0.4)
    assert late.itls == pytest.approx([0.1, 0.3])
    assert late.tpot == pytest.approx(0.2)
    assert late.latency == pytest.approx(0.9)
    assert late.queue_seconds == pytest.approx(0.1)
    assert late.dispatch_lag == pytest.approx(0.1)


def test_chunks_of_several_tokens_do_not_change_the_time_per_token():
    assert record(0.0, 1.0, 2.0, completion_tokens=5).tpot == pytest.approx(0.25)


@pytest.mark.parametrize("text_times", [[1.0], [1.0, 2.0]])
def test_an_answer_of_one_token_has_no_time_per_token(text_times: list[float]):
    assert record(0.0, *text_times, completion_tokens=1).tpot is None


def test_without_usage_the_chunks_are_the_tokens():
    assert record(0.0, 1.0, 2.0, 3.0).output_tokens == 3


def test_chunks_that_were_read_at_once_count_each():
    one = record(0.0)
    for text in ("a", "b", ""):
        one.add_chunk(1.0, text)
    assert (one.output_tokens, one.itls, one.texts) == (3, [0.0, 0.0], ["a", "b", ""])


def test_failed_requests_count_only_as_failed():
    done = record(0.0, 1.0, 2.0, completion_tokens=2, prompt_tokens=5)
    failed = record(1.0, 1.5, error="status 500: no", ended=4.0, completion_tokens=9)
    figures = load_figures(LoadRun([done, failed], 0.0, 4.0), [99.0])
    assert (figures["completed"], figures["failed"]) == (1, 1)
    assert figures["error_counts"] == {"status 500: no": 1}
    assert figures["total_output_tokens"] == 2
    assert figures["output_throughput"] == pytest.approx(0.5)
    assert figures["total_token_throughput"] == pytest.approx(7 / 4)
    assert figures["mean_ttft_ms"] == pytest.approx(1000)
    assert figures["max_concurrent_requests"] == 2


def test_a_request_that_begins_as_another_ends_is_not_beside_it():
    run = LoadRun([record(0.0, 1.0), record(1.0, 2.0)], 0.0, 2.0)
    assert load_figures(run, [99.0])["max_concurrent_requests"] == 1


def test_tokens_fall_into_the_seconds_in_which_they_came():
    records = [record(5.0, 5.1, 5.9, 7.5), record(5.0, 6.0, completion_tokens=4)]
    assert tokens_in_each_second(records, 5.0) == [2.0, 4.0, 1.0]
    assert tokens_in_each_second([], 5.0) == []


def test_prompt_tokens_are_the_servers_or_else_the_workloads():
    by_usage, by_us = record(0.0, 1.0, prompt_tokens=7, prompt_len=6), record(0.0, 1.0, prompt_len=6)
    assert load_figures(LoadRun([by_usage, by_us], 0.0, 1.0), [])["total_input_tokens"] == 13
    assert load_figures(LoadRun([record(0.0, 1.0)], 0.0, 1.0), [])["total_input_tokens"] is None


def test_a_prompt_that_the_server_counts_otherwise_than_the_rest_is_a_mismatch():
    records = [record(0.0, 1.0, prompt_tokens=count + 1, prompt_len=count) for count in (5, 6, 7)]
    records.append(record(0.0, 1.0, prompt_tokens=9, prompt_len=9))
    figures = load_figures(LoadRun(records, 0.0, 1.0), [])
    assert (figures["prompt_tokens_added"], figures["prompt_token_mismatches"]) == (1, 1)


def test_waiting_for_a_place_is_told_apart():
    run = LoadRun([record(1.0, 4.0, start=3.0, sent=3.0)], 0.0, 4.0)
    assert load_figures(run, [])["mean_e2el_ms"] == pytest.approx(1000)
    figures = queue_figures(run, [])
    assert figures["mean_client_queue_time_ms"] == pytest.approx(2000)
    assert figures["mean_e2el_including_client_queue_ms"] == pytest.approx(3000)


@pytest.mark.parametrize(
    ("dispatch_ms", "loop_ms", "said"), [(6.0, 1.0, "sent late"), (1.0, 6.0, "event loop"), (1.0, 1.0, "")]
)
def test_a_late_client_is_not_trusted(dispatch_ms: float, loop_ms: float, said: str):
    records = [record(0.0, 1.0, sent=dispatch_ms / 1e3) for _ in range(10)]
    found = verdict(LoadRun(records, 0.0, 1.0, loop_lags=[loop_ms / 1e3] * 10))
    assert found["trusted"] == (not said)
    assert said in "".join(found["distrust_reasons"])
