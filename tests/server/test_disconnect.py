"""A client that goes away takes its request with it; a server that stops tells its clients. Over real sockets."""

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM
from vllm_server.in_flight import InFlight

ABORTED_WITHIN = 0.2
BODY = {"prompt": "hi", "max_tokens": 400}


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for a condition; the seconds that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited in vain"
        await asyncio.sleep(0.002)
    return time.monotonic() - start


async def send(url: str, route: str, body: dict[str, object]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post a body over a socket of our own."""
    port = int(url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    writer.write(
        f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    await writer.drain()
    return reader, writer


CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "body", "requests"),
    [
        ("/v1/completions", BODY, 1),
        ("/v1/completions", {**BODY, "prompt": ["a", "b", "c"], "n": 2}, 3),
        ("/v1/chat/completions", CHAT_BODY, 1),
    ],
)
async def test_closing_the_connection_aborts_what_runs(
    route: str, body: dict[str, object], requests: int, stream: bool
) -> None:
    llm = FakeLLM(delay=0.02)
    with running(make_context(llm)) as url:
        reader, writer = await send(url, route, {**body, "stream": stream})
        if stream:
            await reader.readuntil(b"data: ")
        await until(lambda: len(llm.running) == requests)
        closed = time.monotonic()
        writer.transport.abort()
        await until(lambda: len(llm.aborted) == requests)
        assert max(llm.aborted.values()) - closed < ABORTED_WITHIN
        assert llm.running == set()


@pytest.mark.parametrize("stream", [False, True])
async def test_closing_the_connection_aborts_what_has_not_begun(stream: bool) -> None:
    llm = FakeLLM(first_delay=30)
    with running(make_context(llm)) as url:
        _, writer = await send(url, "/v1/completions", {**BODY, "stream": stream})
        await until(lambda: len(llm.running) == 1)
        closed = time.monotonic()
        writer.close()
        await until(lambda: len(llm.aborted) == 1)
        assert max(llm.aborted.values()) - closed < ABORTED_WITHIN


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/tokenize", {"prompt": "a" * 10_000}),
        ("/detokenize", {"tokens": [97] * 10_000}),
        ("/v1/messages/count_tokens", {"model": "fake", "messages": [{"role": "user", "content": "a" * 10_000}]}),
        ("/v1/responses/input_tokens", {"input": "a" * 10_000}),
    ],
)
async def test_nobodys_tokens_are_counted_for_a_client_that_has_gone(
    route: str, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLLM()
    waiting, taken_back = asyncio.Event(), asyncio.Event()

    async def in_renderer(*_: object, **__: object) -> None:
        waiting.set()
        try:
            await asyncio.sleep(30)
        finally:
            taken_back.set()

    monkeypatch.setattr(llm, "in_renderer", in_renderer)
    context = make_context(llm)
    with running(context) as url:
        _, writer = await send(url, route, body)
        await until(waiting.is_set)
        assert len(context.in_flight) == 1  # which a server that drains waits for
        writer.close()
        await until(taken_back.is_set)
        await until(lambda: not len(context.in_flight))


async def test_a_client_that_leaves_while_sending_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    llm = FakeLLM()
    with running(make_context(llm)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.sleep(0.1)
    assert llm.calls == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_only_reads_slowly_is_not_aborted() -> None:
    llm = FakeLLM()
    with running(make_context(llm)) as url:
        reader, writer = await send(url, "/v1/completions", {**BODY, "stream": True})
        await asyncio.sleep(0.3)
        text = b""
        while b"[DONE]" not in text:
            text += await asyncio.wait_for(reader.read(2000), 5)
        assert text.count(b"data: ") == 401
        assert llm.aborted == {}
        writer.close()


async def test_a_finished_request_on_a_connection_that_stays_open_is_not_aborted() -> None:
    llm = FakeLLM()
    with running(make_context(llm)) as url:
        reader, writer = await send(url, "/v1/completions", {**BODY, "max_tokens": 2})
        await reader.readuntil(b'"completion_tokens":2')
        await asyncio.sleep(0.1)
        assert llm.aborted == {}
        writer.close()


async def test_aborting_all_ends_a_stream_with_an_error_event_and_an_answer_with_a_503() -> None:
    llm = FakeLLM(delay=0.02)
    context = make_context(llm)
    with running(context) as url:
        streaming, writer = await send(url, "/v1/completions", {**BODY, "stream": True})
        waiting, other = await send(url, "/v1/completions", BODY)
        await streaming.readuntil(b"data: ")
        await until(lambda: len(llm.running) == 2)
        # The application runs in a thread with a loop of its own.
        next(iter(context.in_flight._tasks)).get_loop().call_soon_threadsafe(context.in_flight.abort_all)
        last = await asyncio.wait_for(streaming.readuntil(b"0\r\n\r\n"), 5)
        assert last.rstrip(b"\r\n0").endswith(
            b'data: {"error":{"message":"The server is shutting down.","type":"service_unavailable_error",'
            b'"param":null,"code":"shutting_down"}}'
        )
        head = await asyncio.wait_for(waiting.readuntil(b"\r\n"), 5)
        assert b" 503 " in head
        assert llm.running == set()
        writer.close()
        other.close()


async def test_work_that_ends_by_itself_gives_its_result_and_leaves_nothing_behind() -> None:
    in_flight = InFlight()
    never = asyncio.Event()

    async def receive() -> dict[str, str]:
        await never.wait()
        return {"type": "http.disconnect"}

    async def work() -> int:
        return 5

    before = asyncio.all_tasks()
    assert await in_flight.run(receive, work()) == 5  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert len(in_flight) == 0
    assert asyncio.all_tasks() == before


async def test_cancelling_the_handler_cancels_the_work_and_waits_for_its_cleanup() -> None:
    in_flight = InFlight()
    never = asyncio.Event()
    cleaned = False

    async def receive() -> dict[str, str]:
        await never.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        nonlocal cleaned
        try:
            await never.wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned = True

    handler = asyncio.create_task(in_flight.run(receive, work()))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    assert cleaned
    assert len(in_flight) == 0
