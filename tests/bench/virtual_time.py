"""An event loop whose time passes only while nothing else is to be done: what waits costs nothing, and is exact.

``run(coroutine)`` runs it there; ``time.perf_counter`` is that loop's clock meanwhile. No socket is ever ready.
"""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any
from unittest.mock import patch

_TURN_SECONDS = 1e-6
"""What a turn of the loop takes, so that whoever waits by turns comes to an end, too."""


class Clock:
    """Seconds of a time of its own."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        """As if something had kept the processor for so long."""
        self.now += seconds


class _Selector(selectors.SelectSelector):
    """Waits by passing the time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen")
        self._clock.pass_by(max(timeout, _TURN_SECONDS))
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._virtual = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._virtual.now


def run(coroutine: Coroutine[Any, Any, Any], clock: Clock | None = None) -> Any:
    """What ``coroutine`` returns, by the time of ``clock``."""
    clock = clock or Clock()
    with (
        patch.object(time, "perf_counter", lambda: clock.now),
        asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner,
    ):
        return runner.run(coroutine)
