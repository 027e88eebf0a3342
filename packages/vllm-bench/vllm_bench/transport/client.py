"""Posts JSON to one server over as many connections as it needs, each used again when its answer has ended."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

from vllm_bench.transport.connection import ClosedByServer, Connection, Receiver, TransportError

_CONNECT_SECONDS = 10.0


class HttpClient:
    """Talks to the server at ``base_url`` (``http://host:port`` and perhaps a path before that of the API).

    No proxy, no redirects, no compression: each would be measured too.

    Raises:
        ValueError: the URL is none, or a header cannot be sent.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} does not begin with http:// or https:// and a host")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        own = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", "Content-Type": "application/json"}
        lines = [f"{name}: {value}" for name, value in {**own, **headers}.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header cannot hold a line break")
        self._headers = "\r\n".join(lines).encode("latin-1")
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def request(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST of ``body``."""
        head = f"POST {self._prefix}{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode("latin-1")
        return head + self._headers + b"\r\n\r\n" + body

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
