"""Server-sent events: one ``data:`` block per output, then ``[DONE]``; an error ends the stream with one event.

Where an API ends its streams otherwise, or names its events, it says so.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from vllm_engine.errors import VllmError
from vllm_server.errors import ShuttingDown, error_body
from vllm_server.in_flight import InFlight
from vllm_server.telemetry.request_record import current_record

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One event with ``value`` as JSON. JSON written by msgspec holds no raw line breaks, as SSE demands."""
    return b"data: %b\n\n" % _encode(value)


def named_event(name: str, value: Any) -> bytes:
    """One event of the kind ``name``, for APIs whose events have kinds."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(value))


def _error_event(error: Exception) -> bytes:
    return event(error_body(error))


class EventStream(Response):
    """A response that sends blocks of events as they come.

    The status line waits for the first block, so that a request that is refused gets a proper status code.
    Closing the connection, or stopping the server, closes ``blocks``. ``end`` stands after the last block, or instead
    of it what ``failure`` makes of an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        blocks: AsyncGenerator[bytes, None],
        in_flight: InFlight,
        *,
        end: bytes = _DONE,
        failure: Callable[[Exception], bytes] = _error_event,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._blocks = blocks
        self._in_flight = in_flight
        self._end = end
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await self._in_flight.run(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        last = self._end
        try:
            async with aclosing(self._blocks) as blocks:
                first = await anext(blocks, None)
                if first is not None:
                    await self._send_start(send)
                    started = True
                    await send(_part(first))
                    await asyncio.create_task(_send_rest(send, blocks))
        except asyncio.CancelledError:
            if not (started and self._in_flight.aborting):
                raise
            last = self._failure(ShuttingDown("The server is shutting down."))
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, VllmError):
                logger.exception("a stream failed")
            current_record().fail(error)
            last = self._failure(error)
        if not started:
            await self._send_start(send)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


def _part(block: bytes) -> Message:
    return {"type": "http.response.body", "body": block, "more_body": True}


async def _send_rest(send: Send, blocks: AsyncGenerator[bytes, None]) -> None:
    """Send blocks as they come, in a task of its own.

    To wake a task up takes a step through each coroutine that waits for another one in it. In that of the request these
    are two dozen: all of the middleware, the routers and the application.
    """
    async for block in blocks:
        await send(_part(block))
