"""How an answer of ``/v1/responses`` is made: while its client waits, as a stream, or in the background."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from vllm_engine.errors import Overloaded, VllmError
from vllm_server.answers.event_stream import named_event
from vllm_server.answers.generation import Generation
from vllm_server.answers.responses import ResponseAnswer
from vllm_server.errors import ShuttingDown, error_body
from vllm_server.in_flight import InFlight
from vllm_server.protocol.responses import ErrorEvent
from vllm_server.response_store import KeptResponse, ResponseStore
from vllm_server.telemetry.request_record import current_record

logger = logging.getLogger(__name__)


async def streamed(
    answer: ResponseAnswer, generation: Generation, in_flight: InFlight, keep: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """Blocks of events. ``keep`` is called once, when the answer has ended, before its last events go out.

    What is wrong with the request is raised before the first block; any later error is an event.
    """
    begun = False
    try:
        async with aclosing(generation.outputs()) as outputs:
            async for _, output in outputs:
                begun = True
                if block := b"".join(answer.take(output)):
                    yield block
        last = answer.end()
    except Exception as error:
        if not begun:
            raise
        current_record().fail(error)
        _log_unexpected(error)
        last = answer.fail(error)
    finally:
        # The client has gone. When the server ends, nobody can ask for the answer, and the stream says why it ends.
        if begun and not answer.ended and not in_flight.aborting:
            answer.cancel()
            keep()
    keep()
    yield b"".join(last)


class BackgroundRun:
    """Makes an answer that does not depend on its client, and keeps the store up to date.

    The response is in the store once ``start`` returns, and has ended when its task has, whatever happens.
    """

    def __init__(self, answer: ResponseAnswer, kept: KeptResponse, store: ResponseStore, in_flight: InFlight) -> None:
        self._answer = answer
        self._kept = kept
        self._store = store
        self._in_flight = in_flight
        self._accepted = asyncio.Event()

    def accept(self) -> None:
        """The engine has the request. Raises ``Overloaded`` when there is no room to keep the response."""
        events = self._answer.queue()
        self._kept.body = self._answer.body
        self._store.add(self._kept)
        self._update(events)
        self._accepted.set()

    async def start(self, generation: Generation) -> None:
        """Returns once the engine has the request; raises what is wrong with it."""
        task = self._kept.task = self._in_flight.start(self._run(generation))
        waiter = asyncio.ensure_future(self._accepted.wait())
        try:
            await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if not self._accepted.is_set():
            if task.cancelled():
                raise ShuttingDown("The server is shutting down.")
            task.result()

    async def _run(self, generation: Generation) -> None:
        status = "queued"
        try:
            async with aclosing(generation.outputs()) as outputs:
                async for _, output in outputs:
                    events = self._answer.take(output)
                    if self._answer.response.status != status:
                        status = self._answer.response.status
                        self._kept.body = self._answer.body
                    self._update(events)
            last = self._answer.end()
        except asyncio.CancelledError:
            if not self._accepted.is_set():
                raise
            ending = self._in_flight.aborting
            last = self._answer.fail(ShuttingDown("The server has shut down.")) if ending else self._answer.cancel()
        except Exception as error:
            if not self._accepted.is_set():
                raise
            current_record().fail(error)
            _log_unexpected(error)
            last = self._answer.fail(error)
        self._kept.ended = True
        self._kept.body = self._answer.body
        self._store.update(self._kept, last)

    def _update(self, events: list[bytes]) -> None:
        if not self._store.update(self._kept, events):
            raise Overloaded("So much is kept of responses that run that there is no room for this one.")


def error_event(error: Exception, number: int) -> bytes:
    """The last event of a stream that breaks off; ``number`` is its own."""
    detail = error_body(error).error
    return named_event("error", ErrorEvent(number, detail.message, detail.code, detail.param))


def _log_unexpected(error: Exception) -> None:
    if not isinstance(error, VllmError):
        logger.error("a response failed", exc_info=error)
