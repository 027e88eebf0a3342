"""The work of a batch: lines in, answers out in the same order, a bounded number of both at any time."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from vllm_engine.errors import EngineDead, VllmError
from vllm_server.batch.app import post
from vllm_server.batch.input import MAX_LINE_BYTES, NumberedLine
from vllm_server.batch.journal import Journal
from vllm_server.batch.request import custom_id_of, parse_line
from vllm_server.batch.result import WrittenResult, answered, refused
from vllm_server.errors import PayloadTooLarge

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_WINDOW = 16
"""How many times the requests in flight may wait for an earlier one, so that a long answer holds up no short ones."""
_HELD_BYTES = 64 * 2**20
"""Lines that run and answers that wait may have so many bytes, or be one."""


class BatchWork:
    """Answers ``lines`` into ``journal``."""

    def __init__(
        self,
        app: ASGIApp,
        llm: "AsyncLLM",
        lines: Iterator[NumberedLine],
        journal: Journal,
        *,
        urls: Collection[str],
        in_flight: int,
        tell: Callable[[WrittenResult], object],
    ) -> None:
        """``urls`` are the routes of ``app`` that a line may name, ``in_flight`` is the most requests that run at once.

        ``tell`` is called for each answer that is written.
        """
        self._app = app
        self._llm = llm
        self._lines = lines
        self._journal = journal
        self._urls = urls
        self._in_flight = in_flight
        self._tell = tell
        self._running = 0
        self._held_bytes = 0
        self._window: deque[asyncio.Task[WrittenResult]] = deque()
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
        while (
            self._running < self._in_flight
            and len(self._window) < _WINDOW * self._in_flight
            and (self._held_bytes < _HELD_BYTES or not self._window)
        ):
            line = next(self._lines, None)
            if line is None:
                break
            self._held_bytes += len(line[1] or b"")
            self._window.append(asyncio.create_task(self._result(*line)))
            self._running += 1
        return bool(self._window)

    def _write(self, result: WrittenResult) -> None:
        self._held_bytes -= len(result.line)
        self._journal.write(result.line, failed=result.failed)
        self._tell(result)

    async def _result(self, number: int, line: bytes | None) -> WrittenResult:
        try:
            result = await self._answer(number, line)
            self._held_bytes += len(result.line) - len(line or b"")
            return result
        finally:
            self._running -= 1
            self._finished.set()

    async def _answer(self, number: int, line: bytes | None) -> WrittenResult:
        """What is written for a line: whatever goes wrong with it alone is an answer, too."""
        try:
            if line is None:
                raise PayloadTooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes")
            request = parse_line(line, self._urls)
            answer = await post(self._app, request.url, request.body)
            if answer.status >= 500:
                self._llm.check_health()
            return answered(request.custom_id, answer)
        except EngineDead:
            raise
        except VllmError as error:
            return refused(custom_id_of(line), number, error)
        except Exception as error:
            logger.exception("line %d has no answer", number)
            return refused(custom_id_of(line), number, error)
