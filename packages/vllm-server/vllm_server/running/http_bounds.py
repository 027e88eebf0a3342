"""HTTP/1.1 as uvicorn speaks it, with bounds on how much a client may send, and how slowly.

uvicorn's connection has none: a header that never ends could fill the memory, and half a request wait for ever. It
takes the body of a request that offers an upgrade for the next request, and of several requests sent at once it tells
only the last that the client has gone.
"""

import asyncio
import gc
import logging
from typing import Any, ClassVar, NoReturn

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from vllm_server.errors import ErrorBody, ErrorDetail
from vllm_server.json_body import MAX_BODY_BYTES
from vllm_server.running.joined_writes import JoinedTransport, WriteTurn

logger = logging.getLogger(__name__)

MAX_RAW_BYTES = 2 * MAX_BODY_BYTES
"""Of one request with all that belongs to it. What no route reads has no other bound; it is read until there, as a
client that is cut off while it sends cannot see the answer that it has got."""
GRACE_SECONDS = 30.0
"""In which a head must have come, from its first byte on; a body gets them, too, and then has to keep a pace."""
SLOWEST_BYTES_PER_SECOND = 1024
IDLE_SECONDS = 60.0
"""After which a connection is closed on which nothing ever came; uvicorn's own timer covers those between requests."""
UNREAD_SECONDS = 600.0
"""In which a client must read something of an answer that waits for it, before its connection is closed."""
CHECK_SECONDS = 5.0
LINGER_SECONDS = 2.0
"""In which a refused client can read why, while what it still sends is thrown away."""

LARGE_BYTES = 1 << 20
"""Garbage of a request from this size on is collected when it is answered: errors and their stacks hold on to bodies,
and a thousand small objects later another large one may be there."""


class _Refused(Exception):
    """Ends the parser's work on a request."""


class _BoundedProtocol(HttpToolsProtocol):
    """One connection. What is no HTTP is answered with 400, what is too long with 413 or 431, what is too slow
    with 408. After such an answer the connection is closed.
    """

    max_head_bytes: ClassVar[int]
    max_headers: ClassVar[int]
    turn: ClassVar[WriteTurn]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._incomplete = False
        """Whether part of a request has come, and its end has not."""
        self._declines_upgrade = False
        self._size = 0
        self._beside_body = 0
        """Bytes since the request began, or a piece of its body did, that are none of its body."""
        self._begun = self._last_data = 0.0
        self._was_large = False
        self._running: RequestResponseCycle | None = None
        self._check: asyncio.TimerHandle | None = None
        self._refused = False
        self._unread_since: float | None = None
        self._unread = 0

    # ---- the event loop's side ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(JoinedTransport(transport, self.turn))
        self._begun = self._last_data = self.loop.time()
        self._check = self.loop.call_later(CHECK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)
        self._tell_that_nobody_listens()

    def pause_writing(self) -> None:
        """The client does not read what is sent, or not as quickly."""
        self._unread_since = self.loop.time()
        self._unread = self.transport.get_write_buffer_size()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read most of it."""
        self._unread_since = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """What the event loop has read."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._last_data = self.loop.time()
        if not self._incomplete:
            self._begin()
        self._size += len(data)
        self._beside_body += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(400, "This is no HTTP/1.1 request.", "no_http")
        if self._refused or not self._incomplete:
            return
        if self._beside_body > self.max_head_bytes:
            self._refuse_head()
        elif self._size > MAX_RAW_BYTES:
            self._refuse(413, f"The request is longer than {MAX_RAW_BYTES} bytes.", "payload_too_large")

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            # For the parser another protocol begins here. The offer is declined: it is the body, or the next request.
            head = self._head_without_offer()
            self._declines_upgrade = False
            self.parser = httptools.HttpRequestParser(self)
            self._parse(head + data[stop.args[0] :])

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/1.1" % (self.scope["method"].encode(), self.url)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def _look(self) -> None:
        """From time to time: does the client still send, and read?"""
        self._check = self.loop.call_later(CHECK_SECONDS, self._look)
        now = self.loop.time()
        if self._is_unread(now):
            self.transport.abort()  # the answer would wait for ever, and its request with it
        elif self._refused or self.transport.is_closing():
            return
        elif self._incomplete:
            late = now - self._begun - GRACE_SECONDS
            if not self.flow.read_paused and late > (0 if self._in_head else self._size / SLOWEST_BYTES_PER_SECOND):
                self._refuse(408, "The request did not come in time.", "request_timeout")
        elif (self._running is None or self._running.response_complete) and now - self._last_data > IDLE_SECONDS:
            self.transport.close()

    def _is_unread(self, now: float) -> bool:
        """Whether nothing of an answer has been read for too long. A large one is read for longer than that."""
        if self._unread_since is None:
            return False
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread < before:
            self._unread_since = now
        return now - self._unread_since > UNREAD_SECONDS

    # ---- the parser's side ----

    def on_message_begin(self) -> None:
        """A request begins, maybe in the same piece of data as the end of the one before."""
        if not self._incomplete:
            self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one that follows a body in pieces: nobody has asked for those."""
        if not self._in_head:
            return
        if len(self.headers) >= self.max_headers:
            self._give_up(431, f"The request has more than {self.max_headers} headers.", "headers_too_large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._refuse_head()
            raise _Refused
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._give_up(400, "A request has one Host header.", "no_http")
        if self.parser.get_method() == b"CONNECT":
            self._give_up(400, "This server is no proxy.", "no_http")
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            self._declines_upgrade = True
            return
        self._in_head = False
        self._beside_body = 0
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A piece of a body begins."""
        self._beside_body = 0

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self._beside_body = max(0, self._beside_body - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; what else was read belongs to the next one, and is at most one reading."""
        if self._declines_upgrade:
            return
        self._incomplete = False
        self._was_large |= self._size >= LARGE_BYTES
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request has been answered."""
        super().on_response_complete()
        if self._was_large:
            self._was_large = False
            self.loop.call_soon(gc.collect)

    def _begin(self) -> None:
        self._in_head = self._incomplete = True
        self._size = self._beside_body = 0
        self._begun = self.loop.time()

    # ---- answers ----

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self, status: int, message: str, code: str) -> NoReturn:
        self._refuse(status, message, code)
        raise _Refused  # which the parser turns into an error of its own

    def _refuse_head(self) -> None:
        message = f"The first line and the headers of the request have more than {self.max_head_bytes} bytes."
        self._refuse(431, message, "headers_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in the application's place, unless it has begun to answer another request, and close."""
        if self._refused:
            return
        self._refused = True
        logger.info("a request is refused: %s", message)
        self.pipeline.clear()
        if self._answer_has_begun():
            if self._running is not None and self._running.response_complete:
                self._linger()
            else:
                self.transport.close()
            return
        self._tell_that_nobody_listens()
        body = msgspec.json.encode(ErrorBody(ErrorDetail(message, "invalid_request_error", None, code)))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._linger()

    def _linger(self) -> None:
        """Close when the client has had time to read its answer: who is cut off while it sends loses what has come."""
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _answer_has_begun(self) -> bool:
        """Whether the client is being told something, or was told before the end of its request."""
        running = self._running
        if running is None or not running.response_started:
            return False
        return not running.response_complete or (self._incomplete and not self._in_head)

    def _tell_that_nobody_listens(self) -> None:
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()


def bounded_protocol(max_head_bytes: int, max_headers: int) -> type[HttpToolsProtocol]:
    """The class of connections with these bounds, for ``uvicorn.Config``."""
    bounds = {"max_head_bytes": max_head_bytes, "max_headers": max_headers, "turn": WriteTurn()}
    return type("BoundedProtocol", (_BoundedProtocol,), bounds)
