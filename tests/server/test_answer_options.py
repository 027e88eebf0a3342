"""Settings of the server that change what every answer holds."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM, sse_events
from vllm_engine.errors import ConfigError
from vllm_server.app import build_app
from vllm_server.config import create_server_config

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "a greeting of many letters"}], "max_tokens": 2},
    COMPLETIONS: {"prompt": "a greeting of many letters", "max_tokens": 2},
}
WITH_LOGPROBS = {CHAT: {"logprobs": True, "top_logprobs": 2}, COMPLETIONS: {"logprobs": 2}}
ROUTES = pytest.mark.parametrize("route", [CHAT, COMPLETIONS])


def client_of(llm: FakeLLM | None = None, **options: Any) -> httpx.AsyncClient:
    return make_client(build_app(make_context(llm or FakeLLM(), **options)))


def tokens_of(choice: dict[str, Any]) -> list[str]:
    """The names of the tokens of a choice, and of the likeliest ones at their places."""
    shown = choice["logprobs"]
    if "content" in shown:
        return [
            name for item in shown["content"] for name in (item["token"], *(t["token"] for t in item["top_logprobs"]))
        ]
    return [*shown["tokens"], *(name for top in shown["top_logprobs"] for name in top)]


@ROUTES
@pytest.mark.parametrize(
    ("default", "asked", "ids"),
    [(False, None, False), (False, True, True), (True, None, True), (True, False, False), (True, True, True)],
)
async def test_tokens_are_named_as_the_request_says_or_else_the_server(
    route: str, default: bool, asked: bool | None, ids: bool
) -> None:
    body = {**BODIES[route], **WITH_LOGPROBS[route], "return_tokens_as_token_ids": asked}
    async with client_of(return_tokens_as_token_ids=default) as client:
        names = tokens_of((await client.post(route, json=body)).json()["choices"][0])
    # The fake engine writes "ab", and the next letter is the second likeliest at each place.
    assert sorted(names) == sorted(
        ["token_id:97", "token_id:97", "token_id:98", "token_id:98", "token_id:98", "token_id:99"]
        if ids
        else ["a", "a", "b", "b", "b", "c"]
    )


@ROUTES
@pytest.mark.parametrize("enabled", [False, True])
async def test_cached_tokens_are_told_when_that_is_enabled(route: str, enabled: bool) -> None:
    body = BODIES[route]
    async with client_of(enable_prompt_tokens_details=enabled) as client:
        whole = (await client.post(route, json=body)).json()["usage"]
        stream = {**body, "stream": True, "stream_options": {"include_usage": True}}
        *_, last, done = sse_events((await client.post(route, json=stream)).text)
    assert done == "[DONE]"
    assert json.loads(last)["usage"] == whole
    # The fake engine finds each whole block of 16 tokens in its cache.
    cached = {"cached_tokens": whole["prompt_tokens"] // 16 * 16}
    assert whole.get("prompt_tokens_details") == (cached if enabled else None)
    assert ("prompt_tokens_details" in whole) == enabled


@ROUTES
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}])
async def test_every_stream_ends_with_usage_where_that_is_set(route: str, options: dict[str, Any]) -> None:
    usages = []
    for forced, asked in [(True, options), (False, {"stream_options": {"include_usage": True}}), (False, options)]:
        async with client_of(enable_force_include_usage=forced) as client:
            text = (await client.post(route, json={**BODIES[route], "stream": True, **asked})).text
        *_, last, _ = sse_events(text)
        usages.append(json.loads(last).get("usage"))
    assert usages[0] == usages[1] is not None
    assert usages[2] is None


async def test_without_load_tracking_there_is_no_such_route() -> None:
    async with client_of() as client:
        response = await client.get("/load")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_route"


async def test_the_load_is_the_number_of_requests_that_run() -> None:
    llm = FakeLLM(first_delay=0.2)
    async with client_of(llm, enable_server_load_tracking=True) as client:

        async def load() -> int:
            response = await client.get("/load")
            assert response.status_code == 200
            assert list(response.json()) == ["server_load"]
            number: int = response.json()["server_load"]
            return number

        assert await load() == 0
        running = [
            asyncio.create_task(client.post(CHAT, json=BODIES[CHAT])),
            asyncio.create_task(client.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "prompt": ["a", "b"]})),
            asyncio.create_task(client.post(CHAT, json={**BODIES[CHAT], "stream": True})),
        ]
        while len(llm.running) < 4:
            await asyncio.sleep(0.005)
        assert await load() == 3
        assert [response.status_code for response in await asyncio.gather(*running)] == [200, 200, 200]
        assert (await client.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "prompt": "!boom"})).status_code == 500
        assert await load() == 0


@pytest.mark.parametrize(
    ("options", "content", "prompt"),
    [
        ({}, "hi", "'hi'"),
        ({}, ["a", "b"], "a,b,"),
        ({"chat_template_content_format": "string"}, ["a", "b"], "'a\nb'"),
        ({"chat_template_content_format": "openai"}, "hi", "hi,"),
        ({"chat_template_content_format": "openai"}, ["a", "b"], "a,b,"),
    ],
)
async def test_content_reaches_the_template_in_the_form_that_is_set(
    options: dict[str, str], content: str | list[str], prompt: str
) -> None:
    llm = FakeLLM()
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {
        "default": "{% for m in messages %}{% if m.content is string %}'{{ m.content }}'{% else %}"
        "{% for part in m.content %}{{ part.text }},{% endfor %}{% endif %}{% endfor %}"
    }
    parts = content if isinstance(content, str) else [{"type": "text", "text": text} for text in content]
    async with client_of(llm, **options) as client:
        response = await client.post(CHAT, json={"messages": [{"role": "user", "content": parts}], "max_tokens": 1})
    assert response.status_code == 200
    assert llm.calls[-1].prompt["prompt"] == prompt


async def test_a_request_cannot_set_the_form_of_content_as_a_variable() -> None:
    body = {**BODIES[CHAT], "chat_template_kwargs": {"chat_template_content_format": "openai"}}
    async with client_of() as client:
        response = await client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"


async def test_the_template_has_the_operators_variables_unless_a_request_has_others() -> None:
    llm = FakeLLM()
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": "{{ mood }}{{ enable_thinking }}{{ messages[-1].content }}"}
    hi = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    asked: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, hi, "goodTruehi"),
        (CHAT, {**hi, "chat_template_kwargs": {"mood": "bad"}}, "badTruehi"),
        ("/v1/messages", hi, "goodTruehi"),
        ("/v1/messages", {**hi, "thinking": {"type": "disabled"}}, "goodFalsehi"),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 1}, "goodTruehi"),
    ]
    async with client_of(llm, default_chat_template_kwargs={"mood": "good", "enable_thinking": True}) as client:
        for route, body, prompt in asked:
            assert (await client.post(route, json=body)).status_code == 200
            assert llm.calls[-1].prompt["prompt"] == prompt
        tokens = (await client.post("/tokenize", json={"messages": hi["messages"]})).json()["tokens"]
        assert "".join(map(chr, tokens)) == "goodTruehi"
    for name in ("tools", "messages", "_x", "a b"):
        with pytest.raises(ConfigError) as caught:
            create_server_config({"default_chat_template_kwargs": {name: 1}})
        assert caught.value.field == "default_chat_template_kwargs"
