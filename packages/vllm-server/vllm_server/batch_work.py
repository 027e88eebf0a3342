"""The work of a batch: lines in, answers out in the same order, a bounded number of both at any time."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from vllm_engine.errors import InvalidRequest
from vllm_server.batch_app import post
from vllm_server.batch_files import MAX_LINE_BYTES, BatchInput, BatchOutput
from vllm_server.batch_line import BatchResult, answered, custom_id_of, parse_line, refused
from vllm_server.errors import PayloadTooLarge

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM

_WINDOW = 16
"""How many times the requests in flight may wait for an earlier one, so that a long answer holds up no short ones."""


class BatchWork:
    """Runs the lines of ``source``; ``done`` and ``failed`` count the answers that are written."""

    def __init__(
        self,
        app: ASGIApp,
        llm: "AsyncLLM",
        source: BatchInput,
        output: BatchOutput,
        *,
        in_flight: int,
        tell: Callable[[], object],
    ) -> None:
        """``in_flight`` is the most requests that run at once; ``tell`` is called for each answer that is written."""
        self.done = 0
        self.failed = 0
        self._app = app
        self._llm = llm
        self._lines = source.lines()
        self._output = output
        self._in_flight = in_flight
        self._tell = tell
        self._running = 0
        self._window: deque[asyncio.Task[BatchResult]] = deque()
        self._finished = asyncio.Event()

    async def run(self) -> None:
        """Answer every line. When this is cancelled or fails, the requests that run are ended.

        Raises:
            EngineDead: when the engine is gone; its last requests are not written as failed.
            BatchFileError: when a file can no longer be read or written.
        """
        try:
            while self._fill():
                while self._window and self._window[0].done():
                    self._write(self._window.popleft().result())
                if self._window and not self._window[0].done():
                    self._finished.clear()
                    await self._finished.wait()
        finally:
            for task in self._window:
                task.cancel()
            await asyncio.gather(*self._window, return_exceptions=True)

    def _fill(self) -> bool:
        """Start what may run. Returns whether anything is left to wait for."""
        while self._running < self._in_flight and len(self._window) < _WINDOW * self._in_flight:
            line = next(self._lines, None)
            if line is None:
                break
            self._window.append(asyncio.create_task(self._result(*line)))
            self._running += 1
        return bool(self._window)

    def _write(self, result: BatchResult) -> None:
        self._output.write(result.encoded())
        self.done += 1
        self.failed += result.error is not None
        self._tell()

    async def _result(self, number: int, line: bytes | None) -> BatchResult:
        try:
            if line is None:
                raise PayloadTooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes")
            request = parse_line(line)
            answer = await post(self._app, request.url, request.body)
            if answer.status >= 500:
                self._llm.check_health()
            return answered(request, answer)
        except (InvalidRequest, PayloadTooLarge) as error:
            return refused(None if line is None else custom_id_of(line), number, error)
        finally:
            self._running -= 1
            self._finished.set()
