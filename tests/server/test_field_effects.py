"""Each field that a request may have changes something that can be seen: what the engine is asked, or the answer."""

import json
from typing import Any

import msgspec
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import CHAT_TEMPLATE, FakeLLM
from vllm_engine.config import EngineArgs
from vllm_server.app import build_app
from vllm_server.protocol.chat import ChatRequest
from vllm_server.protocol.completions import CompletionRequest

TEMPLATE = CHAT_TEMPLATE + "{{ documents }}{{ reasoning_effort }}"
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "We"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]

# Field -> a value, and what must stand beside it with and without.
COMMON: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("alias", {}),
    "n": (2, {}),
    "temperature": (0.5, {}),
    "top_p": (0.5, {}),
    "top_k": (5, {}),
    "min_p": (0.5, {}),
    "repetition_penalty": (1.5, {}),
    "presence_penalty": (0.5, {}),
    "frequency_penalty": (0.5, {}),
    "seed": (7, {}),
    "stop": ("b", {}),
    "stop_token_ids": ([98], {}),
    "bad_words": (["b"], {}),
    "include_stop_str_in_output": (True, {"stop": "b"}),
    "ignore_eos": (True, {}),
    "min_tokens": (2, {}),
    "max_tokens": (2, {}),
    "prompt_logprobs": (1, {}),
    "logit_bias": ({"97": 1}, {}),
    "allowed_token_ids": ([97, 98], {}),
    "skip_special_tokens": (False, {}),
    "spaces_between_special_tokens": (False, {}),
    "truncate_prompt_tokens": (1, {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "priority": (3, {}),
    "cache_salt": ("salt", {}),
    "request_id": ("my-label", {}),
    "vllm_xargs": ({"a": 1}, {}),
    "return_token_ids": (True, {}),
    "include_receipt": (True, {}),
}
COMPLETION: dict[str, tuple[Any, dict[str, Any]]] = {
    **COMMON,
    "prompt": (["hi", [104, 105]], {}),
    "echo": (True, {}),
    "logprobs": (1, {}),
    "add_special_tokens": (False, {}),
    "return_tokens_as_token_ids": (True, {"logprobs": 1}),
}
CHAT: dict[str, tuple[Any, dict[str, Any]]] = {
    **COMMON,
    "messages": (TALK[:1], {}),
    "logprobs": (True, {}),
    "top_logprobs": (1, {"logprobs": True}),
    "max_completion_tokens": (2, {}),
    "tools": (TOOLS, {}),
    "tool_choice": ("none", {"tools": TOOLS}),
    "add_generation_prompt": (False, {}),
    "continue_final_message": (True, {}),
    "add_special_tokens": (True, {}),
    "chat_template": ("{{ messages[0].content }}", {}),
    "chat_template_kwargs": ({"mood": "good"}, {}),
    "documents": ([{"text": "x"}], {}),
    "reasoning_effort": ("low", {}),
    "echo": (True, {"continue_final_message": True}),
    "return_tokens_as_token_ids": (True, {"logprobs": True}),
}
ELSEWHERE = {"prompt_embeds", "best_of"}
"""Shown in ``test_prompt_embeds``, and below."""


async def seen(route: str, body: dict[str, Any]) -> str:
    """All that can be seen of a request, but for what is made up anew for each."""
    llm = FakeLLM()
    llm.config = EngineArgs(
        "fake/model", served_model_name=["fake", "alias"], scheduling_policy="priority"
    ).create_config()
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": TEMPLATE}
    context = make_context(llm, trust_request_chat_template=True)
    async with make_client(build_app(context)) as client:
        response = await client.post(route, json=body)
    context.templates.close()
    assert response.status_code == 200, response.text
    text = response.text
    for event in text.replace("data: ", "").split("\n"):
        if event.startswith("{"):
            answer = json.loads(event)
            text = text.replace(answer["id"], "").replace(str(answer["created"]), "")
    label = response.headers["x-request-id"]
    calls = [(call.prompt, call.params, call.priority, call.cache_salt) for call in llm.calls]
    return f"{text} {label if label.startswith('my') else ''} {calls}"


def names_of(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)} - ELSEWHERE


def test_each_field_has_its_case() -> None:
    assert names_of(CompletionRequest) == set(COMPLETION)
    assert names_of(ChatRequest) == set(CHAT)


@pytest.mark.parametrize("name", sorted(COMPLETION))
async def test_a_field_of_completions_changes_something(name: str) -> None:
    value, beside = COMPLETION[name]
    body = {"prompt": "hi", "max_tokens": 3, **beside}
    assert await seen("/v1/completions", {**body, name: value}) != await seen("/v1/completions", body)


@pytest.mark.parametrize("name", sorted(CHAT))
async def test_a_field_of_chat_changes_something(name: str) -> None:
    value, beside = CHAT[name]
    body = {"messages": TALK, "max_tokens": 3, **beside}
    assert await seen("/v1/chat/completions", {**body, name: value}) != await seen("/v1/chat/completions", body)


async def test_the_same_request_is_seen_as_the_same() -> None:
    for body in ({"prompt": "hi"}, {"prompt": "hi", "stream": True}):
        assert await seen("/v1/completions", body) == await seen("/v1/completions", body)
    body = {"messages": TALK, "stream": True}
    assert await seen("/v1/chat/completions", body) == await seen("/v1/chat/completions", body)


async def test_prompts_of_both_kinds_stand_beside_each_other(llm: FakeLLM) -> None:
    async with make_client(build_app(make_context(llm))) as client:
        body = {"prompt": ["ab", [104, 105], "c"], "max_tokens": 1, "n": 2, "echo": True}
        answer = (await client.post("/v1/completions", json=body)).json()
        texts = [choice["text"] for choice in answer["choices"]]
        assert texts == ["aba", "abb", "hia", "hib", "ca", "cb"]
        for wrong in (["a", 1], [[1], None], ["a", []], [[1], [True]], [1, "a"], [["a"]]):
            response = await client.post("/v1/completions", json={"prompt": wrong})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


async def test_best_of_is_n_or_refused(llm: FakeLLM) -> None:
    async with make_client(build_app(make_context(llm))) as client:
        for fields, status in (({"best_of": 1}, 200), ({"best_of": 2, "n": 2}, 200), ({"best_of": 2}, 400)):
            response = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **fields})
            assert response.status_code == status
    assert response.json()["error"]["param"] == "best_of"


async def test_a_priority_is_refused_where_nobody_looks_at_it(llm: FakeLLM) -> None:
    async with make_client(build_app(make_context(llm))) as client:
        for route, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": TALK[:1]})):
            response = await client.post(route, json={**body, "priority": 1, "max_tokens": 1})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
            assert (await client.post(route, json={**body, "priority": 0, "max_tokens": 1})).status_code == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_that_was_asked_for_and_cannot_be_as_long_is_refused(llm: FakeLLM, name: str) -> None:
    route, body = "/v1/chat/completions", {"messages": TALK[:1]}
    async with make_client(build_app(make_context(llm))) as client:
        response = await client.post(route, json={**body, name: 512})
        assert (response.status_code, response.json()["error"]["param"]) == (400, name)
        whole = (await client.post(route, json=body)).json()["usage"]
        assert whole["total_tokens"] == 512
        room = whole["completion_tokens"]
        assert (await client.post(route, json={**body, name: room})).json()["usage"] == whole
        assert (await client.post(route, json={**body, name: room + 1})).status_code == 400
        # A default is cut instead.
        llm.defaults = {"max_tokens": 512}
        assert (await client.post(route, json=body)).json()["usage"] == whole
        assert (await client.post("/v1/completions", json={"prompt": "x" * 508})).status_code == 200
