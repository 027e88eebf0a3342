"""What may come over a connection, byte by byte: malformed, smuggled, endless and slow requests, several at once."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM
from vllm_server import json_body
from vllm_server.running import http_bounds

BODY = b'{"prompt": "a", "max_tokens": 1}'
START = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeLLM, str]]:
    llm = FakeLLM()
    with running(make_context(llm, h11_max_incomplete_event_size=64 * 1024)) as url:
        yield llm, url


@pytest.fixture
def url(server: tuple[FakeLLM, str]) -> str:
    return server[1]


async def talk(url: str, *pieces: bytes, pause: float = 0.0, ends: bool = False) -> bytes:
    """What comes back for these pieces until the server closes the connection."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    answer = b""

    async def read() -> None:
        nonlocal answer
        while piece := await reader.read(65536):
            answer += piece

    reading = asyncio.create_task(read())
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
            if reading.done():
                break
        if ends:
            writer.write_eof()
        await asyncio.wait_for(reading, 10)
    except ConnectionError:
        pass
    finally:
        reading.cancel()
        writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def error_of(answer: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


MALFORMED = {
    "both lengths": START + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "both lengths, turned": START + CHUNKED + LENGTH + b"\r\n0\r\n\r\n" + SMUGGLED,
    "two codings": START + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "another coding": START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked is not last": START + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "space before the colon": START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a tab in the name": START + b"Transfer-\tEncoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": START + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "two lengths": START + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "the length twice": START + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": START + b"Content-Length: 3, 3\r\n\r\n" + BODY,
    "a negative length": START + b"Content-Length: -1\r\n\r\n" + BODY,
    "a signed length": START + b"Content-Length: +5\r\n\r\n" + BODY,
    "a hexadecimal length": START + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "an empty length": START + b"Content-Length:\r\n\r\n" + BODY,
    "a length of 21 digits": START + b"Content-Length: 999999999999999999999\r\n\r\n" + BODY,
    "a chunk of 2**72": START + CHUNKED + b"\r\n" + b"f" * 18 + b"\r\n",
    "a negative chunk": START + CHUNKED + b"\r\n-1\r\n",
    "a chunk that is longer": START + CHUNKED + b"\r\n2\r\n{}{}\r\n0\r\n\r\n",
    "a bare line feed": START + b"X-Request-Id: a\nSet-Cookie: b\r\n" + LENGTH + b"\r\n" + BODY,
    "a bare carriage return": START + b"X-Request-Id: a\rSet-Cookie: b\r\n" + LENGTH + b"\r\n" + BODY,
    "a NUL": START + b"X: a\0b\r\n\r\n",
    "no name": START + b": b\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a proxy's request": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
    "a space in the path": b"GET /livez /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character in the path": b"GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "another protocol": b"EHLO server\r\nMAIL FROM: a\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_two_readers_could_read_in_two_ways_is_refused_and_the_connection_closed(
    server: tuple[FakeLLM, str], request_bytes: bytes
) -> None:
    llm, url = server
    before = len(llm.calls)
    answer = await talk(url, request_bytes, SMUGGLED)
    assert statuses(answer) == [400], answer
    assert error_of(answer)["type"] == "invalid_request_error"
    assert b"Set-Cookie" not in answer
    assert len(llm.calls) == before


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_pieces_of_any_size_make_the_same_request(url: str, size: int) -> None:
    whole = START + CLOSE + CHUNKED + b"\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nX-Trailer: a\r\n\r\n"
    answer = await talk(url, *(whole[at : at + size] for at in range(0, len(whole), size)))
    assert statuses(answer) == [200]


async def test_requests_sent_at_once_are_answered_in_their_order(url: str) -> None:
    requests = [
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-Id: r%d\r\nX-Api-Key: a\r\n\r\n" % number
        for number in range(50)
    ]
    answer = await talk(url, b"".join(requests), SMUGGLED.replace(b"Host", b"Connection: close\r\nHost"))
    assert re.findall(rb"x-request-id: r(\d+)", answer) == [b"%d" % number for number in range(50)]
    assert statuses(answer) == [200] * 51


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.3"])
async def test_an_upgrade_is_declined_and_its_body_is_no_request(url: str, offer: bytes) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" % offer
    answer = await talk(url, START + upgrade + LENGTH + b"\r\n", BODY, START + CLOSE + LENGTH + b"\r\n" + BODY)
    assert statuses(answer) == [200, 200]
    answer = await talk(
        url, START + upgrade + LENGTH + b"\r\n" + BODY + START + upgrade + CLOSE + LENGTH + b"\r\n" + BODY
    )
    assert statuses(answer) == [200, 200]
    hidden = START + upgrade + CLOSE + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    answer = await talk(url, hidden)
    assert statuses(answer) == [400]
    assert b"not valid JSON" in answer
    assert b'"object":"list"' not in answer


ENDLESS = {
    "header": [b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ", *[b"a" * 4000] * 2000],
    "headers": [b"GET /livez HTTP/1.1\r\nHost: a\r\n", *[b"X: a\r\n" * 40] * 2000],
    "path": [b"GET /", *[b"a" * 4000] * 2000],
    "query": [b"GET /livez?", *[b"a" * 4000] * 2000],
    "method": [*[b"GET" * 1000] * 2000],
    "trailer": [START + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX: ", *[b"a" * 4000] * 2000],
    "trailers": [START + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n", *[b"X: a\r\n" * 40] * 2000],
    "extension of a piece": [START + CHUNKED + b"\r\n2;a=", *[b"a" * 4000] * 2000],
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS.keys())
async def test_what_never_ends_is_refused_before_it_fills_the_memory(url: str, pieces: list[bytes]) -> None:
    answer = await talk(url, *pieces)
    assert statuses(answer) in ([400], [431]), answer[:300]


async def test_one_large_piece_is_measured_too(url: str) -> None:
    for head in (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 70_000), START + b"X: a\r\n" * 300 + b"\r\n"):
        answer = await talk(url, head)
        assert statuses(answer) == [431]
        assert error_of(answer)["code"] == "headers_too_large"


async def test_the_body_of_a_request_that_is_answered_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "MAX_RAW_BYTES", 1 << 20)
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = await talk(url, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n", *[piece] * 1000)
    assert statuses(answer) == [200]  # and no second answer to the same request


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(http_bounds, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(http_bounds, "IDLE_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], []),
        ([b"GET /livez"], [408]),
        ([b"GET /livez\r\n"], [408]),
        ([b"GET /livez HTTP/1.1\r\n", *[b"X: a\r\n"] * 50], [408]),
        ([START + LENGTH + b"\r\n"], [408]),
        ([START + LENGTH + b"\r\n", *[b" "] * 50], [408]),
        ([START + CHUNKED + b"\r\n2\r\n{"], [408]),
        # Answered before its body has come: nothing is left to say.
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1"], [200]),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1", b"2"], [200]),
    ],
)
async def test_half_a_request_is_not_waited_for_for_ever(url: str, pieces: list[bytes], expected: list[int]) -> None:
    assert statuses(await talk(url, *pieces, pause=0.03)) == expected


@pytest.mark.usefixtures("impatient")
async def test_a_slow_answer_is_no_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(make_context(FakeLLM(delay=0.3))) as url:
        body = b'{"prompt": "a", "max_tokens": 4}'
        answer = await talk(url, START + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert statuses(answer) == [200]
        assert b'"text":"abcd"' in answer


async def test_bodies_that_are_being_read_share_a_bound(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MAX_BYTES_BEING_READ", 1 << 20)
    parts = urlsplit(url)

    def request(length: int) -> tuple[bytes, bytes]:
        return START + CLOSE + b"Content-Length: %d\r\n\r\n" % length, BODY.ljust(length)

    slow = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(2)]
    for _, writer in slow:
        writer.write(START + b"Content-Length: %d\r\n\r\n" % (1 << 20) + b" " * (512 << 10))
        await writer.drain()
    await asyncio.sleep(0.2)
    answer = await talk(url, *request(400 << 10))
    assert statuses(answer) == [429] and b"retry-after: 1" in answer.lower()
    for length in (len(BODY), 100 << 10):  # there is no room left, but that much is an even share
        assert statuses(await talk(url, *request(length))) == [200]
    for _, writer in slow:
        writer.close()
    await asyncio.sleep(0.2)
    assert statuses(await talk(url, *request(400 << 10))) == [200]


@pytest.mark.parametrize("reads_on", [False, True], ids=["stops", "reads slowly"])
@pytest.mark.parametrize("close", [b"", CLOSE], ids=["", "closing"])
async def test_an_answer_is_kept_for_as_long_as_it_is_read(
    url: str, monkeypatch: pytest.MonkeyPatch, close: bytes, reads_on: bool
) -> None:
    monkeypatch.setattr(http_bounds, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(http_bounds, "UNREAD_SECONDS", 1.5)
    body = b'{"prompt": "%b"}' % (b"a" * (3 << 20))  # answered with 9 MB, more than the system takes
    parts = urlsplit(url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (parts.hostname, parts.port))
        head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (close, len(body))
        await loop.sock_sendall(client, head + body)
        answer = bytearray(await loop.sock_recv(client, 12))
        assert answer.endswith(b"200")  # it begins to read
        for turn in range(1, 10):  # the system takes more from the server only when a third of its own buffer is read
            while reads_on and len(answer) < turn << 20:
                answer += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 10)
            await asyncio.sleep(0.25)
        with contextlib.suppress(ConnectionError):
            while not answer.endswith(b"}") and (piece := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 10)):
                answer += piece
        assert answer.endswith(b"}") == (len(answer) > 2 * len(body)) == reads_on


async def test_all_requests_of_a_client_that_has_gone_end() -> None:
    """Also the one that runs while others of the same connection wait behind it."""
    llm = FakeLLM(delay=0.05)
    with running(make_context(llm)) as url:
        body = b'{"prompt": "a", "max_tokens": 400}'
        request = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
        parts = urlsplit(url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request * 3)
        await writer.drain()
        while not llm.running:
            await asyncio.sleep(0.01)
        writer.close()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not llm.running:
                break
        assert len(llm.aborted) == len(llm.calls) == 1


async def test_garbage_behind_a_request_ends_it() -> None:
    llm = FakeLLM(delay=0.05)
    with running(make_context(llm)) as url:
        body = b'{"prompt": "a", "max_tokens": 400, "stream": true}'
        request = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
        answer = await talk(url, request, b"garbage\r\n\r\n", pause=0.3)
        assert statuses(answer) == [200]
        assert b"no_http" not in answer
        while llm.running:
            await asyncio.sleep(0.01)


async def test_a_body_that_is_too_long_is_refused_so_that_the_client_can_read_it(url: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{url}/v1/completions", content=b" " * (65 << 20))
        assert answer.status_code == 413
        assert (await client.get(f"{url}/livez")).status_code == 200
