"""When requests are sent, with a server that is a function, and a clock that nobody else can hold up."""

import asyncio
import time

import pytest

from tests.bench.virtual_time import Clock, run
from vllm_bench.load.run import LoadRun, run_load
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem

TURNS = 0.001
"""Seconds that turns of the loop may add."""


def answering(seconds: float, sent: list[WorkItem] | None = None):
    """A ``send`` whose answer is one text, after so long."""

    async def send(item: WorkItem, record: RequestRecord) -> None:
        record.sent = time.perf_counter()
        if sent is not None:
            sent.append(item)
        await asyncio.sleep(seconds)
        record.ended = time.perf_counter()
        record.add_chunk(record.ended, "x")

    return send


def due_at(*offsets: float | None):
    return iter([WorkItem(f"prompt {number}", offset=offset) for number, offset in enumerate(offsets)])


def about(seconds: float | list[float]):
    return pytest.approx(seconds, abs=TURNS)


def test_a_schedule_is_kept_whatever_becomes_of_the_answers():
    load = run(run_load(answering(0.2), due_at(0.0, 0.05, 0.1)))
    assert [record.arrival - load.began for record in load.records] == pytest.approx([0.0, 0.05, 0.1])
    assert all(record.start == record.arrival for record in load.records)
    assert all(0 <= record.dispatch_lag < TURNS for record in load.records)
    assert load.seconds == about(0.3)


def test_what_the_server_holds_up_counts_from_the_intended_moment():
    """A client that stalls with its server would report two quick requests."""
    clock = Clock()

    async def stalling(item: WorkItem, record: RequestRecord) -> None:
        record.sent = time.perf_counter()
        clock.pass_by(0.1 if item.prompt == "prompt 0" else 0.0)
        record.ended = time.perf_counter()
        record.add_chunk(record.ended, "x")

    load = run(run_load(stalling, due_at(0.0, 0.02)), clock)
    assert load.records[1].sent - load.began == about(0.1)
    assert load.records[1].ttft == about(0.08)
    assert load.records[1].dispatch_lag == about(0.08)
    assert max(load.loop_lags) == about(0.08)


def test_a_limit_makes_those_that_are_due_wait_and_the_wait_is_not_the_servers():
    load = run(run_load(answering(0.1), due_at(0.0, 0.01, 0.02), max_concurrency=1))
    assert [record.queue_seconds for record in load.records] == about([0.0, 0.09, 0.18])
    assert [record.ttft for record in load.records] == about([0.1] * 3)


def test_without_a_schedule_the_next_begins_when_one_ends():
    load = run(run_load(answering(0.05), due_at(*[None] * 6), max_concurrency=2))
    assert load.seconds == about(0.15)
    for earlier, later in zip(load.records, load.records[2:], strict=False):
        assert later.start == about(earlier.ended)
        assert later.dispatch_lag < TURNS


def test_without_a_schedule_and_a_limit_all_are_sent_at_once():
    load = run(run_load(answering(0.1), due_at(*[None] * 20)))
    assert load.seconds == about(0.1)
    assert all(record.dispatch_lag < TURNS for record in load.records)


def test_after_the_time_nothing_new_is_sent_and_the_rest_is_finished():
    sent: list[WorkItem] = []
    endless = (WorkItem("again") for _ in iter(int, 1))
    load = run(run_load(answering(0.1, sent), endless, max_concurrency=2, seconds=0.25))
    assert len(sent) == len(load.records) == 6
    assert load.seconds == about(0.3)
    scheduled = run(run_load(answering(0.0), due_at(0.0, 0.05, 5.0), seconds=0.1))
    assert len(scheduled.records) == 2
    assert scheduled.seconds == about(0.05)


def test_the_turns_of_a_conversation_follow_one_another_in_one_place():
    def second(answer: str) -> WorkItem:
        return WorkItem(f"you said {answer}", offset=0.05)

    sent: list[WorkItem] = []
    items = iter([WorkItem("first", follow_up=second), WorkItem("another")])
    load = run(run_load(answering(0.02, sent), items, max_concurrency=1))
    assert [item.prompt for item in sent] == ["first", "you said x", "another"]
    assert load.records[1].start == pytest.approx(load.records[0].ended + 0.05)


def test_a_refusing_server_is_not_hammered():
    async def refuse(item: WorkItem, record: RequestRecord) -> None:
        record.sent = record.ended = time.perf_counter()
        record.error = "no"

    load = run(run_load(refuse, due_at(None, None, None), max_concurrency=1))
    assert load.seconds == about(0.2)
    assert isinstance(load, LoadRun)
