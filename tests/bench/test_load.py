"""When requests are sent, with a server that is a function."""

import asyncio
import time

import pytest

from vllm_bench.load.run import LoadRun, run_load
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


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


async def test_a_schedule_is_kept_whatever_becomes_of_the_answers():
    run = await run_load(answering(0.2), due_at(0.0, 0.05, 0.1))
    assert [record.arrival - run.began for record in run.records] == pytest.approx([0.0, 0.05, 0.1])
    assert all(record.start == record.arrival for record in run.records)
    assert all(0 <= record.dispatch_lag < 0.04 for record in run.records)
    assert 0.3 <= run.seconds < 0.6


async def test_what_the_server_holds_up_counts_from_the_intended_moment():
    """A client that stalls with its server would report two quick requests."""

    async def stalling(item: WorkItem, record: RequestRecord) -> None:
        record.sent = time.perf_counter()
        time.sleep(0.1 if item.prompt == "prompt 0" else 0.0)
        record.ended = time.perf_counter()
        record.add_chunk(record.ended, "x")

    run = await run_load(stalling, due_at(0.0, 0.02))
    assert run.records[1].sent - run.began >= 0.1
    assert run.records[1].ttft >= 0.08
    assert run.records[1].dispatch_lag >= 0.08
    assert max(run.loop_lags) >= 0.05


async def test_a_limit_makes_those_that_are_due_wait_and_the_wait_is_not_the_servers():
    run = await run_load(answering(0.1), due_at(0.0, 0.01, 0.02), max_concurrency=1)
    assert [record.queue_seconds for record in run.records] == pytest.approx([0.0, 0.09, 0.18], abs=0.04)
    assert all(record.ttft == pytest.approx(0.1, abs=0.04) for record in run.records)


async def test_without_a_schedule_the_next_begins_when_one_ends():
    run = await run_load(answering(0.05), due_at(*[None] * 6), max_concurrency=2)
    assert 0.15 <= run.seconds < 0.3
    for earlier, later in zip(run.records, run.records[2:], strict=False):
        assert later.start == pytest.approx(earlier.ended, abs=0.02)
        assert later.dispatch_lag < 0.02


async def test_without_a_schedule_and_a_limit_all_are_sent_at_once():
    run = await run_load(answering(0.1), due_at(*[None] * 20))
    assert run.seconds < 0.2
    assert all(record.dispatch_lag < 0.02 for record in run.records)


async def test_after_the_time_nothing_new_is_sent_and_the_rest_is_finished():
    sent: list[WorkItem] = []
    endless = (WorkItem("again") for _ in iter(int, 1))
    run = await run_load(answering(0.1, sent), endless, max_concurrency=2, seconds=0.25)
    assert len(sent) == len(run.records) == 6
    assert 0.25 <= run.seconds < 0.45
    scheduled = await run_load(answering(0.0), due_at(0.0, 0.05, 5.0), seconds=0.1)
    assert len(scheduled.records) == 2
    assert scheduled.seconds < 1


async def test_the_turns_of_a_conversation_follow_one_another_in_one_place():
    def second(answer: str) -> WorkItem:
        return WorkItem(f"you said {answer}", offset=0.05)

    sent: list[WorkItem] = []
    items = iter([WorkItem("first", follow_up=second), WorkItem("another")])
    run = await run_load(answering(0.02, sent), items, max_concurrency=1)
    assert [item.prompt for item in sent] == ["first", "you said x", "another"]
    assert run.records[1].start == pytest.approx(run.records[0].ended + 0.05)


async def test_a_refusing_server_is_not_hammered():
    async def refuse(item: WorkItem, record: RequestRecord) -> None:
        record.sent = record.ended = time.perf_counter()
        record.error = "no"

    run = await run_load(refuse, due_at(None, None, None), max_concurrency=1)
    assert run.seconds >= 0.2
    assert isinstance(run, LoadRun)
