"""Sends the items of a workload at their times, and keeps the records.

One loop for all kinds of load. With a schedule it is open: an item is due at its moment, whatever became of those
before it, and its times count from that moment. Without one (every offset None) and with a limit of places it is
closed: the next item is due when a place becomes free.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from vllm_bench.load.clock import sleep_until
from vllm_bench.load.heartbeat import Heartbeat
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

    @property
    def seconds(self) -> float:
        """From the begin to the end of the last answer."""
        return self.ended - self.began

    @property
    def client_cpu_share(self) -> float:
        """CPU time over wall time; near 1, the client and not the server sets the pace."""
        return self.client_cpu_seconds / max(self.seconds, 1e-9)


async def run_load(
    send: Send, items: Iterator[WorkItem], *, max_concurrency: int | None = None, seconds: float | None = None
) -> LoadRun:
    """Send all ``items``, and return when the last answer has ended.

    Args:
        max_concurrency: no more than so many at a time; those that are due meanwhile wait.
        seconds: send nothing new after so long; what is on its way is read to its end and counts.
    """
    run = LoadRun()
    heartbeat = Heartbeat()
    slots = Slots(max_concurrency)
    gc.collect()
    gc.freeze()  # the workload is not to be searched again and again
    cpu = time.process_time()
    run.began = time.perf_counter()
    stop = float("inf") if seconds is None else run.began + seconds
    try:
        async with heartbeat, asyncio.TaskGroup() as tasks:
            for item in items:
                arrival = run.began + (item.offset or 0.0)
                if item.offset is not None:
                    if arrival >= stop:
                        break
                    await sleep_until(arrival)
                freed = await slots.take()
                now = time.perf_counter()
                if now >= stop:
                    slots.give_back()
                    break
                # Without a schedule, and with a place that was always free, it is due when the loop gets round to it.
                start = now if item.offset is None and freed == ALWAYS else max(arrival, freed)
                tasks.create_task(_turns(send, item, arrival, start, slots, run))
                await asyncio.sleep(0)
    finally:
        gc.unfreeze()
        run.loop_lags = heartbeat.lags
        run.client_cpu_seconds = time.process_time() - cpu
        run.ended = max((record.ended for record in run.records), default=time.perf_counter())
    return run


async def _turns(send: Send, item: WorkItem | None, arrival: float, start: float, slots: Slots, run: LoadRun) -> None:
    """An item and those that follow from its answer, one after the other in the same place."""
    try:
        while item is not None:
            record = RequestRecord(arrival, start, item.prompt_len)
            run.records.append(record)
            await send(item, record)
            if record.error is not None:
                # A server that refuses at once is not to be hammered.
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)
                return
            item = item.follow_up("".join(record.texts)) if item.follow_up is not None else None
            if item is not None:
                arrival = start = record.ended + (item.offset or 0.0)
                await sleep_until(start)
    finally:
        slots.give_back()
