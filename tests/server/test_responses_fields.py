"""Each documented field of ``/v1/responses`` changes something that can be seen, or is refused with its reason."""

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import CHAT_TEMPLATE, FakeLLM
from tests.server.test_fuzz import FUZZ, check, requests, texts, values
from vllm_engine.config import EngineArgs
from vllm_server.app import build_app
from vllm_server.protocol.fields import HINTS_OF_RESPONSES, REFUSED_RESPONSES
from vllm_server.protocol.responses import ResponsesRequest

# The request class of the peer's newest release, by name.
DOCUMENTED = """
    background include input instructions max_output_tokens max_tool_calls metadata model logit_bias
    parallel_tool_calls previous_response_id prompt reasoning include_reasoning service_tier store stream temperature
    text tool_choice tools top_logprobs top_p top_k min_p truncation user skip_special_tokens
    spaces_between_special_tokens include_stop_str_in_output presence_penalty frequency_penalty prompt_cache_key
    prompt_cache_options prompt_cache_retention safety_identifier watermarking request_id session_id media_io_kwargs
    mm_processor_kwargs priority mm_payload return_mm_kwargs cache_salt enable_response_messages
    previous_input_messages structured_outputs repetition_penalty seed stop stop_token_ids ignore_eos vllm_xargs
    kv_transfer_params ec_transfer_params chat_template_kwargs
""".split()
ROUTE = "/v1/responses"
LONG = [
    {"role": "user", "content": "x" * 300},
    {"role": "assistant", "content": "y"},
    {"role": "user", "content": "z" * 180},
]
TOOLS = [{"type": "function", "name": "f"}]
LOGPROBS = ["message.output_text.logprobs"]

# Field -> a value, and what must stand beside it with and without.
EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("alias", {}),
    "input": ([{"role": "system", "content": "hi"}], {}),
    "instructions": ("rules", {}),
    "previous_input_messages": ([{"role": "user", "content": "before"}], {}),
    "include": (LOGPROBS, {}),
    "top_logprobs": (2, {"include": LOGPROBS}),
    "store": (False, {}),
    "background": (True, {}),
    "stream": (True, {}),
    "metadata": ({"a": "b"}, {}),
    "user": ("me", {}),
    "safety_identifier": ("me", {}),
    "prompt_cache_key": ("me", {}),
    "reasoning": ({"effort": "low"}, {}),
    "tools": (TOOLS, {}),
    "tool_choice": ("none", {"tools": TOOLS}),
    "truncation": ("auto", {}),
    "max_output_tokens": (2, {}),
    "temperature": (0.5, {}),
    "top_p": (0.5, {}),
    "top_k": (5, {}),
    "min_p": (0.5, {}),
    "seed": (7, {}),
    "stop": ("b", {}),
    "stop_token_ids": ([98], {}),
    "presence_penalty": (0.5, {}),
    "frequency_penalty": (0.5, {}),
    "repetition_penalty": (1.5, {}),
    "logit_bias": ({"97": 1}, {}),
    "include_stop_str_in_output": (True, {}),
    "ignore_eos": (True, {}),
    "skip_special_tokens": (False, {}),
    "spaces_between_special_tokens": (False, {}),
    "priority": (3, {}),
    "cache_salt": ("salt", {}),
    "request_id": ("my-label", {}),
    "vllm_xargs": ({"a": 1}, {}),
    "chat_template_kwargs": ({"mood": "good"}, {}),
    "enable_response_messages": (True, {}),
    "include_receipt": (True, {}),
}
ELSEWHERE = {
    "previous_response_id": "in test_responses_sdk.py",
    "text": "says what holds anyway, or is refused below",
    "service_tier": "the same",
}

# A value that asks for something, for each field that is refused.
ASKING: dict[str, Any] = {
    "conversation": "conv_1",
    "context_management": [{"type": "compaction"}],
    "ec_transfer_params": {"a": 1},
    "include_reasoning": False,
    "kv_transfer_params": {"a": 1},
    "max_tool_calls": 3,
    "media_io_kwargs": {"a": 1},
    "mm_payload": "x",
    "mm_processor_kwargs": {"a": 1},
    "moderation": {"model": "m"},
    "parallel_tool_calls": False,
    "prompt": {"id": "p"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "return_mm_kwargs": True,
    "stream_options": {"include_obfuscation": True},
    "structured_outputs": {"regex": "a+"},
    "watermarking": True,
}

# Values -> the field that the answer names.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": {}}, "input"),
    ({"input": [1]}, "input"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": "x", "a": 1}]}, "input[0].a"),
    ({"input": [{"type": 7}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "r"}]}, "input[0]"),
    ({"input": [{"type": "x" * 500}]}, "input[0]"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "no"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
    ({"input": [{"role": "user", "content": "x"}] * 10_001}, "input"),
    ({"previous_input_messages": [{"role": "user"}]}, "previous_input_messages[0].content"),
    ({"previous_input_messages": [{"role": "user", "content": "x", "name": "y"}]}, "previous_input_messages[0].name"),
    ({"previous_input_messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "input"),
    ({"previous_input_messages": [], "previous_response_id": "resp_1"}, "previous_input_messages"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": LOGPROBS, "top_logprobs": -5}, "top_logprobs"),
    ({"background": True, "store": False}, "background"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {"a" * 65: "b"}}, "metadata"),
    ({"metadata": {"a": "b" * 513}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}, "text.format"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": "required", "tools": TOOLS}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}, "tools": TOOLS}, "tool_choice"),
    ({"truncation": "maybe"}, "truncation"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 512}, "max_output_tokens"),
    ({"max_output_tokens": 2**31}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"stop": ["a"] * 1000}, "stop"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"request_id": "a b"}, "request_id"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"n": 2}, "n"),
    ({"messages": []}, "messages"),
]


def names_of(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def make_llm() -> FakeLLM:
    llm = FakeLLM()
    llm.config = EngineArgs(
        "fake/model", served_model_name=["fake", "alias"], scheduling_policy="priority"
    ).create_config()
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": CHAT_TEMPLATE + "{{ reasoning_effort }}"}
    return llm


@pytest.fixture
def post(client: httpx.AsyncClient) -> Any:
    async def send(**fields: Any) -> httpx.Response:
        return await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 2, **fields})

    return send


async def seen(body: dict[str, Any]) -> str:
    """All that can be seen of a request, but for what is made up anew for each."""
    llm = make_llm()
    async with make_client(build_app(make_context(llm))) as client:
        response = await client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    text = re.sub(r"(resp|msg)_[0-9a-f]+", "", response.text)
    text = re.sub(r'"(created|completed)_at":\d+', "", text)
    label = response.headers["x-request-id"]
    calls = [(call.prompt, call.params, call.priority, call.cache_salt) for call in llm.calls]
    return f"{text} {label if label.startswith('my') else ''} {calls}"


def test_each_documented_field_is_honoured_or_refused_or_a_hint() -> None:
    for name in DOCUMENTED:
        places = [name in names_of(ResponsesRequest), name in REFUSED_RESPONSES, name in HINTS_OF_RESPONSES]
        assert places.count(True) == 1, name
    assert len(DOCUMENTED) == 57
    assert names_of(ResponsesRequest) <= {*DOCUMENTED, "include_receipt"}
    assert names_of(ResponsesRequest) == EFFECTS.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", sorted(EFFECTS))
async def test_a_field_changes_something(name: str) -> None:
    value, beside = EFFECTS[name]
    body = {"input": "hi", "max_output_tokens": 3, **beside}
    assert await seen({**body, name: value}) != await seen(body)


async def test_the_same_request_is_seen_as_the_same() -> None:
    for body in ({"input": "hi"}, {"input": "hi", "stream": True}, {"input": "hi", "background": True}):
        assert await seen(body) == await seen(body)


@pytest.mark.parametrize("name", sorted(REFUSED_RESPONSES))
async def test_a_refused_field_gives_a_400_that_names_it(post: Any, llm: FakeLLM, name: str) -> None:
    response = await post(**{name: ASKING[name]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert llm.calls == []
    for neutral in (None, *REFUSED_RESPONSES[name]):
        assert (await post(**{name: neutral})).status_code == 200


@pytest.mark.parametrize(("fields", "param"), WRONG)
async def test_a_wrong_value_gives_a_400_that_names_its_place(
    post: Any, llm: FakeLLM, fields: dict[str, Any], param: str
) -> None:
    for more in ({}, {"stream": True}, {"background": True} if "background" not in fields else {}):
        response = await post(**more, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert llm.running == set()


async def test_what_means_nothing_is_taken(post: Any) -> None:
    for fields in (
        {"session_id": "x"},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"service_tier": "auto"},
        {"tool_choice": "auto"},
        {"reasoning": {"effort": None}},
        {"top_logprobs": 0},
    ):
        assert (await post(**fields)).status_code == 200


items = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(
                st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]), values
            ),
            "role": st.one_of(st.sampled_from(["user", "assistant", "system"]), values),
            "content": st.one_of(
                texts,
                st.lists(st.fixed_dictionaries({"type": st.sampled_from(["input_text", "refusal"]), "text": values})),
                values,
            ),
            "call_id": st.one_of(st.just("c"), values),
            "name": texts,
            "arguments": st.one_of(st.just("{}"), texts, values),
            "output": st.one_of(texts, values),
            "id": values,
            "status": values,
        },
    ),
    max_size=3,
)
known = sorted((names_of(ResponsesRequest) | REFUSED_RESPONSES.keys()) - {"input"})


@FUZZ
@given(body=requests("input", st.one_of(texts, items, values), known))
async def test_any_json_object_is_answered_or_refused(body: dict[str, Any]) -> None:
    body["max_output_tokens"] = body.pop("max_tokens", 2)
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        await check(client, ROUTE, json.dumps(body).encode())
        body.pop("max_output_tokens")
        await check(client, f"{ROUTE}/input_tokens", json.dumps(body).encode())


@FUZZ
@given(query=st.dictionaries(st.sampled_from("stream starting_after include limit order after".split()), texts))
async def test_any_query_is_answered_or_refused(query: dict[str, str]) -> None:
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        made = (await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 1})).json()["id"]
        for path in (made, f"{made}/input_items", "resp_none"):
            response = await client.get(f"{ROUTE}/{path}", params=query)
            assert response.status_code in (200, 400, 404)
