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
async def serving(answer: Handler, headers: dict[str, str] | None = None) -> AsyncIterator[HttpClient]:
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
    async with server, HttpClient(f"http://127.0.0.1:{port}/base/", headers or {"X-Own": "1"}) as client:
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


async def test_interim_answers_are_passed_over():
    async def answer(reader, writer, number):
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HELLO)

    async with serving(answer) as client:
        for _ in range(2):
            taken = await post(client)
            assert (taken.status, taken.body) == (200, b"hello")


async def test_an_interim_answer_is_none():
    async def answer(reader, writer, number):
        await read_request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async with serving(answer) as client:
        with pytest.raises(TransportError, match="broke in the middle"):
            await post(client)


async def test_a_server_may_close_after_each_answer_and_say_so_or_not():
    connections = []

    async def answer(reader, writer, number):
        connections.append(number)
        await read_request(reader)
        close = b"Connection: close\r\n" if number % 2 else b""
        writer.write(b"HTTP/1.1 200 OK\r\n" + close + b"Content-Length: 5\r\n\r\nhello")
        await writer.drain()

    async with serving(answer) as client:
        await client.open(2)
        for _ in range(6):
            assert (await post(client)).body == b"hello"
    assert len(connections) == 6


async def test_two_answers_to_one_request_end_the_connection():
    connections = []

    async def answer(reader, writer, number):
        connections.append(number)
        while True:
            await read_request(reader)
            writer.write(HELLO + HELLO)

    async with serving(answer) as client:
        for _ in range(2):
            assert (await post(client)).body == b"hello"
    assert len(connections) == 2


async def test_connections_can_be_opened_beforehand():
    connections = []

    async def answer(reader, writer, number):
        connections.append(number)
        while True:
            await read_request(reader)
            writer.write(HELLO)

    async with serving(answer) as client:
        await client.open(100)
        await client.open(100)
        await asyncio.gather(*(post(client) for _ in range(100)))
        assert len(connections) == 100
        await asyncio.gather(*(post(client) for _ in range(101)))
        assert len(connections) == 101


async def test_what_cannot_be_opened_beforehand_is_the_requests_error():
    async with HttpClient("http://127.0.0.1:9", {}) as client:
        await client.open(3)
        with pytest.raises(TransportError, match="no connection"):
            await post(client)


async def test_given_headers_win_whatever_their_case():
    seen = []

    async def answer(reader, writer, number):
        seen.append(await read_request(reader))
        writer.write(HELLO)

    async with serving(answer, {"content-type": "application/x-own", "HOST": "elsewhere"}) as client:
        await client.send(client.request("/v1/x", b"{}", {"X-Request-Id": "r7"}), Taken())
    (request,) = seen
    lines = request.split(b"\r\n")
    assert {b"content-type: application/x-own", b"HOST: elsewhere", b"X-Request-Id: r7"} <= {*lines}
    assert request.lower().count(b"content-type") == request.lower().count(b"host:") == 1


async def test_nobody_there_is_an_error():
    async with HttpClient("http://127.0.0.1:9", {}) as client:
        with pytest.raises(TransportError, match="no connection"):
            await post(client)


@pytest.mark.parametrize(
    ("url", "headers"),
    [("localhost:8000", {}), ("http://", {}), ("http://h", {"A": "b\r\nC: d"}), ("http://h", {"A:": "b"})],
)
def test_what_cannot_be_sent_is_refused(url: str, headers: dict[str, str]):
    with pytest.raises(ValueError, match=r"http://|line break|no name"):
        HttpClient(url, headers)
