"""What ``/v1/messages`` refuses, and every error under its path in the shape that Anthropic's clients read."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM, letters
from tests.server.test_disconnect import ABORTED_WITHIN, send, until
from tests.server.test_fuzz import LEAK, values
from vllm_server.app import build_app
from vllm_server.protocol.fields import REFUSED_MESSAGES

ROUTE = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"max_tokens": 4, "messages": HI, **fields}


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [*HI, {"role": role, "content": list(blocks)}]}


def check_error(response: httpx.Response, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    """The error of a response that must be one of Anthropic's; ``param``: the field that it names, or its beginning."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["type", "error", "request_id"]
    assert answer["type"] == "error"
    assert answer["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    error: dict[str, Any] = answer["error"]
    assert error["type"] == kind, error
    assert error["message"]
    named = error.get("details", {}).get("param")
    assert (named or "").startswith(param or "") and (named is None) == (param is None), error
    if param is not None:
        assert param.split(".")[0] in error["message"]
    return error


CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": HI * 10_001}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
        (said({"type": "text"}), "messages"),
        (said({"type": "text", "text": 1}), "messages"),
        (said({"type": "text", "text": "x", "citations": [{}]}), "messages"),
        (said({"type": "text", "text": "x", "cache_control": {"type": "forever"}}), "messages"),
        (said({"text": "x"}), "messages"),
        (said("x"), "messages"),
        (said({"type": "video"}), "messages"),
        (said({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}), "messages"),
        (said({"type": "document", "source": {}}), "messages"),
        (said({"type": "search_result"}), "messages"),
        (said({"type": "redacted_thinking", "data": "x"}, role="assistant"), "messages"),
        (said({**RESULT, "content": [{"type": "image", "source": {}}]}), "messages"),
        (said({**RESULT, "content": 5}), "messages"),
        (said({"type": "tool_result"}), "messages"),
        (said(CALL), "messages"),
        (said({"type": "thinking", "thinking": "x"}), "messages"),
        (said(RESULT, role="assistant"), "messages"),
        (said(CALL, role="assistant"), "messages"),
        (said({**CALL, "input": "x"}, role="assistant"), "messages"),
        (said({**CALL, "caller": {"type": "code_execution_20250825"}}, role="assistant"), "messages"),
        (said(CALL, role="system"), "messages"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"system": ["x"]}, "system"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 512}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**40}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["a"] * 1000}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": "me"}, "metadata"),
        ({"metadata": {"user": "me"}}, "metadata.user"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking"),
        ({"thinking": {}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"effort": "immense"}}, "output_config.effort"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tools": [{**TOOL, "strict": True}]}, "tools"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "name": "f"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"cache_control": {"type": "persistent"}}, "cache_control"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"vllm_xargs": []}, "vllm_xargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"mood": {"a": "x" * 10}}, "model": 5}, "model"),
        ({"user": "me"}, "user"),
        ({"seed": 1}, "seed"),
        ({"max_tokens_to_sample": 1}, "max_tokens_to_sample"),
    ],
    ids=lambda value: json.dumps(value)[:80],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_is_a_400_that_names_the_field(
    client: httpx.AsyncClient, llm: FakeLLM, fields: dict[str, Any], param: str, stream: bool
) -> None:
    sent = body(**{"stream": stream, **fields})
    check_error(await client.post(ROUTE, json=sent), 400, "invalid_request_error", param)
    assert llm.running == set()


async def test_what_a_prompt_needs_must_be_there(client: httpx.AsyncClient) -> None:
    check_error(await client.post(ROUTE, json={"messages": HI}), 400, "invalid_request_error", "max_tokens")
    check_error(await client.post(ROUTE, json={"max_tokens": 4}), 400, "invalid_request_error", "messages")
    check_error(await client.post(COUNT, json={}), 400, "invalid_request_error", "messages")
    check_error(await client.post(COUNT, json=body()), 400, "invalid_request_error", "max_tokens")


ASKING: dict[str, Any] = {
    "container": {"skills": []},
    "ec_transfer_params": {"a": 1},
    "kv_transfer_params": {"a": 1},
    "mcp_servers": [{"type": "url", "url": "http://127.0.0.1/", "name": "x"}],
    "mm_payload": "x",
    "return_mm_kwargs": True,
    "service_tier": "priority",
    "speed": "fast",
    "watermarking": True,
}


@pytest.mark.parametrize("name", sorted(REFUSED_MESSAGES))
async def test_a_refused_field_is_refused_by_name(client: httpx.AsyncClient, llm: FakeLLM, name: str) -> None:
    error = check_error(await client.post(ROUTE, json=body(**{name: ASKING[name]})), 400, "invalid_request_error", name)
    assert "not supported" in error["message"]
    assert llm.calls == []
    for neutral in (None, *REFUSED_MESSAGES[name]):
        assert (await client.post(ROUTE, json=body(**{name: neutral}))).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"max_tokens": NaN}',
        b'{"system": "\\ud800"}',
        b"[" * 200_000,
        b'{"tools": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"messages": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}",
    ],
    ids=range(9),
)
async def test_a_body_that_is_no_json_object_is_a_400(client: httpx.AsyncClient, content: bytes) -> None:
    for route in (ROUTE, COUNT):
        check_error(await client.post(route, content=content), 400, "invalid_request_error")


@pytest.mark.parametrize("depth", [30, 62, 100, 400, 900, 1500])
async def test_deep_inputs_of_tools_are_taken_or_refused(client: httpx.AsyncClient, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    call = json.dumps({**CALL, "input": 0}).replace("0", deep)
    content = (
        f'{{"max_tokens": 1, "messages": [{{"role": "assistant", "content": [{call}]}}, '
        f'{{"role": "user", "content": [{json.dumps(RESULT)}]}}]}}'
    )
    response = await client.post(ROUTE, content=content.encode())
    assert (response.status_code == 200) == (depth < 100), response.text
    if depth >= 100:  # too long for the model, or too deep for one of those who read it
        check_error(response, 400, "invalid_request_error", param_of(response))


def param_of(response: httpx.Response) -> str | None:
    """The field that an error names, if it names one."""
    param: str | None = response.json()["error"].get("details", {}).get("param")
    return param


async def test_errors_of_the_engine_have_their_kinds(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    for word, status, kind in (
        ("!boom", 500, "api_error"),
        ("!fail", 500, "api_error"),
        ("!error", 500, "api_error"),
        ("!overloaded", 529, "overloaded_error"),
        ("!dead", 503, "api_error"),
    ):
        for stream in (False, True):
            sent = body(messages=[{"role": "user", "content": word}], stream=stream)
            if word == "!error" and stream:
                continue  # fails after its first token: an event, below
            response = await client.post(ROUTE, json=sent)
            error = check_error(response, status, kind)
            assert not LEAK.search(response.text)
            assert error["details"]["error_code"]
            assert ("retry-after" in response.headers) == (status in (503, 529))


async def test_other_refusals_under_the_path_have_the_same_shape(client: httpx.AsyncClient) -> None:
    check_error(await client.get(ROUTE), 405, "invalid_request_error")
    check_error(await client.get(f"{ROUTE}/batches"), 404, "not_found_error")
    check_error(await client.post(ROUTE, json=body(model="nobody")), 404, "not_found_error", "model")
    check_error(await client.post(COUNT, json={"model": "nobody", "messages": HI}), 404, "not_found_error", "model")
    wrong_kind = {"content-type": "text/plain"}
    check_error(await client.post(ROUTE, content=b"{}", headers=wrong_kind), 415, "invalid_request_error")
    large = {"content-length": str(2**40)}
    check_error(await client.post(ROUTE, content=b"{}", headers=large), 413, "request_too_large")
    assert "param" in (await client.post("/v1/messagesx")).json()["error"]


async def test_a_key_is_needed_and_comes_either_way() -> None:
    app = build_app(make_context(FakeLLM(), api_key=["secret"], root_path="/llm"))
    async with make_client(app) as client:
        for route in (ROUTE, COUNT, f"/llm{ROUTE}"):
            for headers in ({}, {"x-api-key": "other"}, {"Authorization": "Bearer other"}):
                check_error(await client.post(route, json=body(), headers=headers), 401, "authentication_error")
        for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
            assert (await client.post(ROUTE, json=body(), headers=headers)).status_code == 200
        check_error(
            await client.post(f"/llm{ROUTE}", json={}, headers=headers), 400, "invalid_request_error", "messages"
        )


async def test_a_key_that_asks_too_much_is_limited() -> None:
    llm = FakeLLM(first_delay=0.2)
    app = build_app(make_context(llm, api_key=["secret"], max_concurrency_per_key=1))
    async with make_client(app) as client:
        client.headers["x-api-key"] = "secret"
        first = asyncio.create_task(client.post(ROUTE, json=body()))
        await until(lambda: len(llm.running) == 1)
        response = await client.post(ROUTE, json=body())
        check_error(response, 429, "rate_limit_error")
        assert response.headers["retry-after"]
        assert (await first).status_code == 200


@pytest.fixture
async def draining() -> AsyncIterator[httpx.AsyncClient]:
    context = make_context(FakeLLM())
    context.in_flight.drain()
    async with make_client(build_app(context)) as client:
        yield client


async def test_a_server_that_drains_says_so(draining: httpx.AsyncClient) -> None:
    for route in (ROUTE, COUNT):
        response = await draining.post(route, json=body())
        error = check_error(response, 503, "api_error")
        assert error["details"]["error_code"] == "shutting_down"
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize("word", ["!fail-after-2", "!boom-after-2", "!dead-after-2"])
async def test_a_stream_that_fails_ends_with_an_error_event(client: httpx.AsyncClient, word: str) -> None:
    sent = body(messages=[{"role": "user", "content": word}], stream=True)
    response = await client.post(ROUTE, json=sent)
    assert response.status_code == 200
    *_, before, last = response.text.rstrip("\n").split("\n\n")
    assert json.loads(before.partition("data: ")[2])["delta"]["text"] == letters(1, 1)
    name, data = last.split("\n")
    assert name == "event: error"
    answer = json.loads(data.removeprefix("data: "))
    assert (answer["type"], answer["error"]["type"]) == ("error", "api_error")
    assert answer["request_id"] == response.headers["request-id"]
    assert not LEAK.search(last)


@pytest.mark.parametrize("stream", [False, True])
async def test_closing_the_connection_aborts_the_request(stream: bool) -> None:
    llm = FakeLLM(delay=0.02)
    with running(make_context(llm)) as url:
        reader, writer = await send(url, ROUTE, body(max_tokens=400, stream=stream))
        if stream:
            await reader.readuntil(b"content_block_delta")
        await until(lambda: len(llm.running) == 1)
        loop = asyncio.get_running_loop()
        closed = loop.time()
        writer.transport.abort()
        await until(lambda: len(llm.aborted) == 1)
        assert max(llm.aborted.values()) - closed < ABORTED_WITHIN
        assert llm.running == set()


async def test_stopping_the_server_ends_a_stream_with_an_error_event() -> None:
    llm = FakeLLM(delay=0.02)
    context = make_context(llm)
    with running(context) as url:
        reader, writer = await send(url, ROUTE, body(max_tokens=400, stream=True))
        await reader.readuntil(b"content_block_delta")
        next(iter(context.in_flight._tasks)).get_loop().call_soon_threadsafe(context.in_flight.abort_all)
        last = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
        assert b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"The server is' in last
        writer.close()


KNOWN = sorted(
    {"model", "system", "stop_sequences", "stream", "temperature", "top_k", "top_p", "metadata", "thinking", "tools"}
    | {"tool_choice", "output_config", "cache_control", "cache_salt", "vllm_xargs", "chat_template_kwargs"}
    | set(REFUSED_MESSAGES)
)
texts = st.text(st.characters(codec="utf-8"), max_size=5)
blocks = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image", "document", "x"])},
        optional={
            name: st.one_of(texts, values)
            for name in ("text", "id", "name", "input", "tool_use_id", "content", "is_error", "thinking", "source")
        },
    ),
    values,
)
fuzzed_messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]),
            "content": st.one_of(
                st.text(st.characters(codec="utf-8"), max_size=5), st.lists(blocks, max_size=3), values
            ),
        }
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def fuzzed() -> httpx.AsyncClient:
    return make_client(build_app(make_context(FakeLLM())))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.one_of(fuzzed_messages, values),
    options=st.dictionaries(st.one_of(st.sampled_from(KNOWN), texts), values, max_size=3),
    max_tokens=st.one_of(st.integers(1, 5), values),
)
async def test_any_json_object_is_answered_or_refused(
    fuzzed: httpx.AsyncClient, messages: Any, options: dict[str, Any], max_tokens: Any
) -> None:
    for route, fields in ((ROUTE, {"max_tokens": max_tokens}), (COUNT, {})):
        response = await fuzzed.post(route, json={"messages": messages, **fields, **options})
        assert response.status_code in (200, 400, 404), response.text
        assert not LEAK.search(response.text), response.text
        if response.status_code != 200:
            assert list(response.json()) == ["type", "error", "request_id"]
