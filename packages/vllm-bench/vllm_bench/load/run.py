"""Sends the items of a workload at their times, and keeps the records.

One loop for all kinds of load. With a schedule it is open: an item is due at its moment, whatever became of those
before it, and its times count from that moment. Without one (every offset None) and with a limit of places it is
closed: the next item is due when a place becomes free.
"""

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from vllm_bench.load.clock import sleep_until
from vllm_bench.load.heartbeat import Heartbeat
from vllm_bench.load.schedule import Due, Schedule
from vllm_bench.load.slots import ALWAYS, Slots
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem

_PAUSE_AFTER_FAILURE_SECONDS = 0.1

Send = Callable[[WorkItem, RequestRecord], Awaitable[None]]
"""Sends an item and fills in its record; a failure is recorded, not raised."""


@dataclass(slots=True)
class LoadRun:
    """All that was measured of one run."""

    records: list[RequestRecord] = field(default_factory=list)
    """In the order of their start."""
    began: float = 0.0
    ended: float = 0.0
    """The end of the last answer."""
    client_cpu_seconds: float = 0.0
    """CPU time of this process meanwhile."""
    loop_lags: list[float] = field(default_factory=list)
    """Seconds by which the event loop was late, in regular samples."""
    stopped: str | None = None
    """Why it ended before its time; None when it did not."""
    hopeless: bool = False
    """It was stopped because the server refuses whatever it is asked."""
    signal_number: int | None = None
    """The signal that stopped it."""
    unfinished: int = 0
    """Requests that were under way when it was stopped; they have no record."""

    @property
    def seconds(self) -> float:
        """From the begin to the end of the last answer."""
        return self.ended - self.began

    @property
    def client_cpu_share(self) -> float:
        """CPU time over wall time; near 1, the client and not the server sets the pace."""
        return self.client_cpu_seconds / max(self.seconds, 1e-9)


async def run_load(
    send: Send,
    items: Iterator[WorkItem],
    *,
    max_concurrency: int | None = None,
    seconds: float | None = None,
    run: LoadRun | None = None,
) -> LoadRun:
    """Send all ``items``, and return when the last answer has ended.

    Args:
        max_concurrency: no more than so many at a time; those that are due meanwhile wait.
        seconds: send nothing new after so long; what is on its way is read to its end and counts.
        run: what is filled in and returned; whoever gave it has the records so far when this is cancelled.
    """
    run = LoadRun() if run is None else run
    heartbeat = Heartbeat()
    slots = Slots(max_concurrency)
    gc.freeze()  # the workload is not to be searched again and again
    cpu = time.process_time()
    run.began = time.perf_counter()
    schedule = Schedule(items, run.began, math.inf if seconds is None else run.began + seconds)
    try:
        async with heartbeat, asyncio.TaskGroup() as tasks:
            while (arrival := schedule.next_arrival()) is not None:
                await sleep_until(arrival)
                freed = await slots.take()
                now = time.perf_counter()
                due = schedule.take(now)
                if due is None:
                    # Whoever had a place has taken the item meanwhile, or the time is over.
                    slots.give_back(freed)
                    continue
                # Without a schedule, and with a place that was always free, it is due when the loop gets round to it.
                start = now if due.item.offset is None and freed == ALWAYS else max(due.arrival, freed)
                tasks.create_task(_place(send, due, start, slots, schedule, run))
                await asyncio.sleep(0)
    finally:
        gc.unfreeze()
        run.loop_lags = heartbeat.lags
        run.client_cpu_seconds = time.process_time() - cpu
        run.ended = max((record.ended for record in run.records), default=time.perf_counter())
    return run


async def _place(send: Send, due: Due | None, start: float, slots: Slots, schedule: Schedule, run: LoadRun) -> None:
    """What one place sends: an item, and then the next if that is due already, without a turn of the loop between.

    Many answers may end in the same turn: were the place handed to another task each time, the last of their
    successors would wait for as many turns.
    """
    freed = ALWAYS
    try:
        while due is not None:
            freed = await _turns(send, due, start, schedule, run)
            due = schedule.take(time.perf_counter()) if slots.limited else None
            start = freed if due is None else max(due.arrival, freed)
    finally:
        slots.give_back(freed)


async def _turns(send: Send, due: Due, start: float, schedule: Schedule, run: LoadRun) -> float:
    """An item and those that follow from its answer, one after the other; returns when the place became free."""
    item: WorkItem | None = due.item
    arrival = due.arrival
    while item is not None:
        record = RequestRecord(arrival, start, item.prompt_len, item.num_inputs)
        run.records.append(record)
        await send(item, record)
        if record.error is not None:
            # A server that refuses at once is not to be hammered.
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)
            return time.perf_counter()
        item = item.follow_up("".join(record.texts)) if item.follow_up is not None else None
        if item is not None:
            arrival = start = record.ended + (item.offset or 0.0)
            if schedule.over(arrival):
                break
            await sleep_until(start)
    return record.ended
