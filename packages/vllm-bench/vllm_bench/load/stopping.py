"""Why a run may end before its time: a signal, a server that refuses everything, a server that is gone."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm_bench.load.run import LoadRun
from vllm_bench.records import RequestRecord

GONE_SECONDS = 3.0
"""A server that takes no connection for so long, and answers nothing meanwhile, is gone."""

_AT_ONCE = (401, 403, 404, 405)
"""A wrong key, model or path: what is refused so once is refused always."""
_MAY_PASS = (408, 425, 429)
_REFUSALS = 5
_STATUS = re.compile(r"status (4\d\d)\b")


class Stop:
    """Ends a run early, once, and notes why.

    Args:
        run: gets the reason.
        cancel: ends what sends the requests.
    """

    def __init__(self, run: LoadRun, cancel: Callable[[], object]) -> None:
        self._run = run
        self._cancel = cancel

    def __call__(self, reason: str, *, hopeless: bool = False, by_signal: int | None = None) -> None:
        """End the run for ``reason``; ``hopeless``: nothing could ever have come of it."""
        if self._run.stopped is None:
            self._run.stopped = reason
            self._run.hopeless = hopeless
            self._run.signal_number = by_signal
            self._cancel()


class Patience:
    """Looks at each request that has ended, and stops the run when no more can come of it."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._answered = False
        self._refusals = 0
        self._unreachable_since: float | None = None

    def see(self, record: RequestRecord) -> None:
        """``record`` has ended."""
        error = record.error
        if error is not None and error.startswith("no connection"):
            if self._unreachable_since is None:
                self._unreachable_since = record.sent
            if time.perf_counter() - self._unreachable_since >= GONE_SECONDS:
                self._stop(f"the server is gone: {error}")
            return
        self._unreachable_since = None
        if error is None:
            self._answered = True
        elif not self._answered and (status := _STATUS.match(error)) and int(status[1]) not in _MAY_PASS:
            self._refusals += 1
            if int(status[1]) in _AT_ONCE or self._refusals >= _REFUSALS:
                self._stop(f"the server refuses the requests: {error}", hopeless=True)


@contextmanager
def signals_stop(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run instead of the program; a second one ends the program.

    Within a running event loop. In another thread than the main one, which gets no signals, it does nothing.
    """
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop(f"interrupted by {number.name}", by_signal=number)

    caught = []
    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, received, number)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
