"""Servers that behave oddly, written out byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from vllm_bench.transport.client import HttpClient
from vllm_bench.transport.connection import TransportError

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], object]


class Taken:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = b""

    def on_data(self, status: int, now: float, data: bytes) -> None:
        self.status = status
        self.body += data


@asynccontextmanager
async def serving(answer: Handler) -> AsyncIterator[HttpClient]:
    """A client of a server that lets ``answer`` serve each connection; its last argument counts them."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            await answer(reader, writer, connections)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, HttpClient(f"http://127.0.0.1:{port}/base/", {"X-Own": "1"}) as client:
        yield client


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def post(client: HttpClient, body: bytes = b"{}") -> Taken:
    taken = Taken()
    await client.send(client.request("/v1/x", body), taken)
    return taken


async def test_a_request_goes_out_whole_and_connections_are_used_again():
    seen: list[bytes] = []

    async def answer(reader, writer, number):
        while True:
            seen.append(await read_request(reader))
            writer.write(HELLO + b"") if number == 1 else writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    async with serving(answer) as client:
        first = await post(client, b'{"a": 1}')
        assert (first.status, first.body) == (200, b"hello")
        await post(client)
    assert seen[0].startswith(b"POST /base/v1/x HTTP/1.1\r\n")
    assert b"\r\nX-Own: 1\r\n" in seen[0]
    assert seen[0].endswith(b'\r\n\r\n{"a": 1}')
    assert len(seen) == 2


async def test_a_connection_that_was_closed_while_idle_is_replaced():
    async def answer(reader, writer, number):
        await read_request(reader)
        writer.write(HELLO)

    async with serving(answer) as client:
        for _ in range(3):
            assert (await post(client)).body == b"hello"


async def test_an_answer_may_come_in_any_pieces_and_end_with_the_connection():
    async def answer(reader, writer, number):
        await read_request(reader)
        for byte in b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbytes":
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving(answer) as client:
        assert (await post(client)).body == b"bytes"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "broke in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "broke in the middle"),
        (b"what is this?\r\n\r\n", "no HTTP"),
    ],
)
async def test_half_an_answer_is_an_error(sent: bytes, said: str):
    async def answer(reader, writer, number):
        await read_request(reader)
        writer.write(sent)

    async with serving(answer) as client:
        with pytest.raises(TransportError, match=said):
            await post(client)


async def test_nobody_there_is_an_error():
    async with HttpClient("http://127.0.0.1:9", {}) as client:
        with pytest.raises(TransportError, match="no connection"):
            await post(client)


@pytest.mark.parametrize(
    ("url", "headers"), [("localhost:8000", {}), ("http://", {}), ("http://h", {"A": "b\r\nC: d"})]
)
def test_what_cannot_be_sent_is_refused(url: str, headers: dict[str, str]):
    with pytest.raises(ValueError, match=r"http://|line break"):
        HttpClient(url, headers)
