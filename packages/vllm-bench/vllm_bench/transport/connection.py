"""One HTTP/1.1 connection that carries one request at a time, and hands on each piece of an answer as it comes."""

import asyncio
import time
from typing import Protocol, cast

import httptools

_FIRST_FINAL_STATUS = 200
"""Lower ones announce another answer."""


class TransportError(Exception):
    """The server was not reached, or no whole answer came back."""


class ClosedByServer(TransportError):
    """The server closed the connection before a single byte of an answer: one that was idle may be closed any time."""


class Receiver(Protocol):
    """Who takes an answer in."""

    def on_data(self, status: int, now: float, data: bytes) -> None:
        """A piece of the body of an answer with that status; ``now`` is when it was read from the socket."""


class Connection(asyncio.Protocol):
    """Use ``exchange`` again only when it has returned and ``reusable`` is true."""

    def __init__(self) -> None:
        self._done: asyncio.Future[float] | None = None
        self.reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # By its type it is one only in asyncio's own loop.
        self._transport = cast(asyncio.Transport, transport)

    async def exchange(self, request: bytes, receiver: Receiver) -> float:
        """Send ``request`` and wait for the whole answer; returns the moment when its last byte was read.

        Raises:
            TransportError: the connection broke, or what came is no HTTP.
        """
        self._done = asyncio.get_running_loop().create_future()
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self._began = self._bounded = self._has_headers = False
        self._now = 0.0
        if self._transport.is_closing():
            raise ClosedByServer("the server closed the connection")
        self._transport.write(request)
        try:
            return await self._done
        finally:
            if not self._done.done() or self._done.cancelled() or self._done.exception() is not None:
                self.close()
            self._done = None

    def close(self) -> None:
        """Give the connection up."""
        self.reusable = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop. The clock is read first: what is done for this piece is not its lateness."""
        self._now = time.perf_counter()
        if self._done is None:
            self.close()  # nobody asked
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.reusable = False  # also where the answer had come to its end before that
            self._fail(TransportError(f"the answer is no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self.reusable = False
        if self._done is None or self._done.done():
            return
        if self._has_headers and not self._bounded and error is None:
            self._done.set_result(time.perf_counter())  # an answer whose end is that of the connection
        elif self._began:
            self._fail(TransportError("the connection broke in the middle of the answer"))
        else:
            self._fail(ClosedByServer(f"the server closed the connection{f' ({error})' if error else ''}"))

    def on_message_begin(self) -> None:
        """Called by the parser: a first time, and again after an interim answer such as 100 Continue."""
        self._bounded = self._has_headers = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._bounded = True

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._status = self._parser.get_status_code()
        self._has_headers = self._status >= _FIRST_FINAL_STATUS

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        if self._waiting():
            self._receiver.on_data(self._status, self._now, data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._status < _FIRST_FINAL_STATUS:
            return
        if self._done is not None and not self._done.done():
            self.reusable = self._parser.should_keep_alive()
            self._done.set_result(self._now)
        else:
            self.reusable = False  # two answers to one request: whose would the next be?

    def _waiting(self) -> bool:
        return self._done is not None and not self._done.done()

    def _fail(self, error: TransportError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
