"""Posts JSON to one server over as many connections as it needs, each used again when its answer has ended."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

from vllm_bench.transport.connection import ClosedByServer, Connection, Receiver, TransportError
from vllm_bench.transport.tls import client_context

_CONNECT_SECONDS = 10.0
_OPENED_AT_ONCE = 64
"""Few enough for any server's queue of those that knock."""
_NOT_IN_NAMES = frozenset(' "(),/:;<=>?@[\\]{}')


class HttpClient:
    """Talks to the server at ``base_url`` (``http://host:port`` and perhaps a path before that of the API).

    No proxy, no redirects, no compression: each would be measured too.

    Args:
        headers: of every request; they win over those that are sent anyway, whatever their case.
        tls: how to speak to an https server; None for one that is not.

    Raises:
        ValueError: the URL is none, or a header cannot be sent.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} does not begin with http:// or https:// and a host")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or client_context()) if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        own = {
            "Host": parts.netloc.rpartition("@")[2],
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        given = {name.lower() for name in headers}
        own = {name: value for name, value in own.items() if name.lower() not in given}
        self._headers = header_lines({**own, **headers})
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def request(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """The bytes of a POST of ``body``, with ``headers`` of its own beside those of all."""
        head = f"POST {self._prefix}{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode("latin-1")
        return b"".join([head, self._headers, header_lines(headers) if headers else b"", b"\r\n", body])

    async def open(self, count: int) -> None:
        """Have ``count`` connections at hand, so that no request waits for its own.

        Whatever cannot be opened now is tried again when a request needs it, and is that request's error.
        """
        missing = count - len(self._idle)
        while missing > 0:
            opening = min(missing, _OPENED_AT_ONCE)
            opened = await asyncio.gather(*(self._connect() for _ in range(opening)), return_exceptions=True)
            self._idle += [connection for connection in opened if isinstance(connection, Connection)]
            if any(isinstance(connection, BaseException) for connection in opened):
                return
            missing -= opening

    async def send(self, request: bytes, receiver: Receiver) -> float:
        """Send what ``request`` made, and wait for the whole answer; returns when its last byte was read.

        Raises:
            TransportError: the server was not reached, or the answer did not come to its end.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                try:
                    return await self._exchange(connection, request, receiver)
                except ClosedByServer:
                    continue  # it was closed while idle
            else:
                connection.close()
        return await self._exchange(await self._connect(), request, receiver)

    async def _exchange(self, connection: Connection, request: bytes, receiver: Receiver) -> float:
        ended = await connection.exchange(request, receiver)
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return ended

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as error:
            raise TransportError(f"no connection within {_CONNECT_SECONDS:g} s") from error
        except OSError as error:
            raise TransportError(f"no connection: {error.strerror or error}") from error
        return connection


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent, each with its line's end.

    Raises:
        ValueError: one cannot be sent.
    """
    for name, value in headers.items():
        if not name or any(letter in _NOT_IN_NAMES or not letter.isprintable() for letter in name):
            raise ValueError(f"{name!r} is no name of a header")
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"the header {name} cannot hold a line break")
    try:
        return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"a header cannot hold {error.object[error.start]!r}") from error
