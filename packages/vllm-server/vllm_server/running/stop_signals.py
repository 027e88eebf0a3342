"""SIGTERM and SIGINT as two events: the first asks the server to stop, the second to stop at once."""

import asyncio
import signal
from types import TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the signals set ``stop`` and then ``stop_at_once``. For the main thread only."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stop_at_once = asyncio.Event()

    def __enter__(self) -> "StopSignals":
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        (self.stop_at_once if self.stop.is_set() else self.stop).set()
