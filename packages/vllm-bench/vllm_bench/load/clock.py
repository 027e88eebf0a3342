"""Waiting for a moment more exactly than the event loop's timers, which know milliseconds only."""

import asyncio
import time

_TIMER_ERROR_SECONDS = 0.0015


async def sleep_until(moment: float) -> None:
    """Return at ``moment`` of ``time.perf_counter``, at once when it is past; the loop's other work goes on."""
    ahead = moment - time.perf_counter()
    if ahead > _TIMER_ERROR_SECONDS:
        await asyncio.sleep(ahead - _TIMER_ERROR_SECONDS)
    while time.perf_counter() < moment:
        await asyncio.sleep(0)
