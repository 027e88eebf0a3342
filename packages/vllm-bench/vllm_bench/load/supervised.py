"""A run of which something is left when it ends before its time."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from vllm_bench.load.progress import Progress
from vllm_bench.load.run import LoadRun, Send, run_load
from vllm_bench.load.stopping import Patience, Stop, signals_stop
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


async def supervised_run(
    send: Send,
    items: Iterator[WorkItem],
    *,
    max_concurrency: int | None = None,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> LoadRun:
    """``run_load``; a signal, or a server that is gone or refuses everything, ends it with what there is so far.

    ``stopped`` of the run then says why. Requests that were under way are only counted, as ``unfinished``.
    """
    run = LoadRun()

    async def watched(item: WorkItem, record: RequestRecord) -> None:
        record.output_len = item.output_len
        await send(item, record)
        patience.see(record)

    sending = asyncio.create_task(run_load(watched, items, max_concurrency=max_concurrency, seconds=seconds, run=run))
    stop = Stop(run, sending.cancel)
    patience = Patience(stop)
    showing = asyncio.create_task(progress.follow(run)) if progress is not None else None
    try:
        with signals_stop(stop):
            await sending
    except asyncio.CancelledError:
        if run.stopped is None:
            raise
    finally:
        sending.cancel()
        if showing is not None:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
    if run.stopped is not None:
        _keep_what_ended(run)
    return run


def _keep_what_ended(run: LoadRun) -> None:
    ended = [record for record in run.records if record.ended]
    run.unfinished = len(run.records) - len(ended)
    run.records = ended
    run.ended = max((record.ended for record in ended), default=time.perf_counter())
