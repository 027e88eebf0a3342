"""Every error has the OpenAI shape and the right status, and tells nothing of the inside."""

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import Post, make_client, make_context
from tests.server.fake_llm import FakeLLM, sse_events
from vllm_server import json_body
from vllm_server.app import build_app

ROUTES = ["/v1/completions", "/v1/chat/completions"]


def check_error(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of a response that must be one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert error["param"] == param
    return error


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"x"', None),
        (b"null", None),
        (b"{} {}", None),
        (b'{"prompt": "\xff"}', None),
        (b'{"user": "\\ud800"}', None),
        (b'{"user": "\xed\xa0\x80"}', None),
        (b'{"temperature": NaN}', None),
        (b'{"temperature": Infinity}', None),
        (b'{"temperature": 1e999}', "temperature"),
        (b"[" * 200_000, None),
        (b'{"user": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", None),
        (b'{"user": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}", None),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(
    client: httpx.AsyncClient, route: str, body: bytes, param: str | None
) -> None:
    check_error(await client.post(route, content=body), 400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], None]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["a"] * 2000}, "prompt"),
        ({"prompt": ["a"] * 1000, "n": 1000}, "prompt"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 10**12}, "n"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": "x", "n": 1.5}, "n"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "top_p": 1.1}, "top_p"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**30}, "max_tokens"),
        ({"prompt": "x", "min_tokens": 99}, "min_tokens"),
        ({"prompt": "x", "stop": [1]}, "stop"),
        ({"prompt": "x", "stop": ["a"] * 1000}, "stop"),
        ({"prompt": "x", "stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": "a"}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": []}, "logit_bias"),
        ({"prompt": "x", "allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt": "x", "logprobs": -2}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "echo": True, "logprobs": -2}, "logprobs"),
        ({"prompt": "x", "prompt_logprobs": -2}, "prompt_logprobs"),
        ({"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "stream_options": {}}, "stream_options"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "seed": 1.0}, "seed"),
        ({"prompt": "x", "priority": 2**31}, "priority"),
        ({"prompt": "x", "cache_salt": ""}, "cache_salt"),
        ({"prompt": "x", "cache_salt": "s" * 2000}, "cache_salt"),
        ({"prompt": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"prompt": "x", "request_id": "a\nb"}, "request_id"),
        ({"prompt": "x", "model": 5}, "model"),
        ({"prompt": "x", "unheard_of": 1}, "unheard_of"),
        ({"prompt": "x", "Model": "fake"}, "Model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_value_is_a_400_that_names_the_field(
    complete: Post, fields: dict[str, Any], param: str, stream: bool
) -> None:
    if stream and "stream" not in fields and "stream_options" not in fields:
        fields = {**fields, "stream": True}
    error = check_error(await complete(**fields), 400, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("!overloaded", 429, "overloaded"),
        ("!dead", 503, "engine_dead"),
        ("!boom", 500, "internal_error"),
        ("!fail", 500, "request_failed"),
    ],
)
async def test_a_fault_of_the_engine_before_the_first_token_has_its_status(
    complete: Post, prompt: str, status: int, code: str, stream: bool
) -> None:
    response = await complete(prompt=prompt, stream=stream)
    error = check_error(response, status)
    assert error["code"] == code
    assert "0x" not in response.text
    assert "engine.py" not in response.text
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("kind", "code"), [("dead", "engine_dead"), ("fail", "request_failed"), ("boom", "internal_error")]
)
@pytest.mark.parametrize("prompts", [1, 2])
async def test_a_fault_in_the_middle_of_a_stream_is_its_last_event(
    complete: Post, kind: str, code: str, prompts: int
) -> None:
    prompt = [f"!{kind}-after-3", "well"][:prompts]
    response = await complete(prompt=prompt, stream=True)
    assert response.status_code == 200
    *chunks, last = [json.loads(item) for item in sse_events(response.text)]
    assert len([chunk for chunk in chunks if chunk["choices"][0]["index"] == 0]) == 3
    assert last["error"]["code"] == code
    assert "0x" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_the_finish_reason_error_is_an_error_of_the_response(complete: Post, stream: bool) -> None:
    response = await complete(prompt="!error", stream=stream)
    if not stream:
        check_error(response, 500)
    else:
        assert json.loads(list(sse_events(response.text))[-1])["error"]["code"] == "request_failed"


async def test_of_several_prompts_one_fault_ends_all(complete: Post, llm: FakeLLM) -> None:
    check_error(await complete(prompt=["well", "!fail-after-3"]), 500)
    assert llm.running == set()


async def test_an_unknown_model_is_a_404(complete: Post) -> None:
    error = check_error(await complete(model="nobody/knows" + "x" * 500, prompt="x"), 404, "model")
    assert len(error["message"]) < 250


async def test_an_unknown_route_is_a_404_and_a_wrong_method_a_405(client: httpx.AsyncClient) -> None:
    check_error(await client.get("/v2/nothing"), 404)
    check_error(await client.get("/v1/models/nobody"), 404, "model")
    response = await client.get("/v1/completions")
    check_error(response, 405)
    assert response.headers["allow"] == "POST"


async def test_a_body_that_is_declared_to_be_something_else_is_a_415(client: httpx.AsyncClient) -> None:
    for declared in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = await client.post("/v1/completions", content=b"{}", headers={"content-type": declared})
        check_error(response, 415)
    for declared in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        response = await client.post(
            "/v1/completions", content=b'{"prompt": "x", "max_tokens": 1}', headers={"content-type": declared}
        )
        assert response.status_code == 200


async def test_too_long_a_body_is_a_413_announced_or_not(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body.read_json_body, "__defaults__", (1000,))
    taken = 0

    async def pieces() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 100
            yield b"x" * 100

    async with make_client(build_app(make_context(llm))) as client:
        response = await client.post("/v1/completions", content=b"x" * 1001)
        check_error(response, 413)
        check_error(await client.post("/v1/completions", content=pieces()), 413)
        assert taken == 1100
        fits = b'{"prompt": "x", "max_tokens": 1}'.ljust(1000)
        assert (await client.post("/v1/completions", content=fits)).status_code == 200
    assert llm.calls != []


async def test_a_server_that_stops_takes_nothing_new(llm: FakeLLM) -> None:
    context = make_context(llm)
    async with make_client(build_app(context)) as client:
        context.in_flight.drain()
        for route in ROUTES:
            assert check_error(await client.post(route, json={}), 503)["code"] == "shutting_down"
        for route in ("/readyz", "/health"):
            check_error(await client.get(route), 503)
        assert (await client.get("/livez")).status_code == 200
