"""How late the client's own event loop is while it measures."""

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

_BEAT_SECONDS = 0.02


class Heartbeat:
    """Wakes up fifty times a second while the block runs, and notes how late.

    A piece of an answer that comes while the loop is late is read as late, so this is how wrong any moment may be,
    and it shows a starved client also between requests.
    """

    def __init__(self) -> None:
        self.lags: list[float] = []
        """Seconds; the timers' own error of up to a millisecond is in them."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self) -> None:
        while True:
            due = time.perf_counter() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            self.lags.append(max(0.0, time.perf_counter() - due))
