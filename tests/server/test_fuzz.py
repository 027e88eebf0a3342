"""Whatever comes in, the answer is no 500, and tells nothing of the inside."""

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_server.app import build_app
from vllm_server.protocol.chat import ChatRequest
from vllm_server.protocol.completions import CompletionRequest
from vllm_server.protocol.fields import HINTS, REFUSED_CHAT, REFUSED_COMPLETION
from vllm_server.protocol.tokens import TokenizeChatRequest

LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|site-packages|\.py\b|/usr/|/home/|/tmp/|<class|object at")
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 1e-320, 1.0]),
    st.floats(allow_nan=False, allow_infinity=False),
)
texts = st.one_of(
    st.sampled_from(["", "a", "stop", "auto", "none", "\x00", "\u2028", "{{ 7 * 7 }}", "{% raise %}", "x" * 700]),
    st.text(st.characters(codec="utf-8"), max_size=12),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
roles = st.one_of(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), texts)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": st.one_of(texts, values)},
        optional={
            "name": values,
            "tool_calls": values,
            "tool_call_id": st.one_of(texts, values),
            "refusal": values,
            "reasoning": values,
            "annotations": values,
        },
    ),
    max_size=3,
)
prompts = st.one_of(
    texts, st.lists(texts, max_size=3), st.lists(st.integers(-1, 200), max_size=4), st.lists(values, max_size=3), values
)


def names(kind: type[msgspec.Struct], refused: dict[str, Any]) -> list[str]:
    own = {field.name for field in msgspec.structs.fields(kind)} - {"prompt", "messages"}
    return sorted(own | set(refused) | set(HINTS))


def requests(required: str, shape: st.SearchStrategy[Any], known: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    options = st.dictionaries(st.one_of(st.sampled_from(known), texts), values, max_size=3)
    # Most values are wrong: with at most one of them, the rest of the way is travelled too.
    good = st.fixed_dictionaries({required: shape, "max_tokens": st.integers(1, 5)})
    return st.builds(lambda fields, extra: {**fields, **extra}, good, options)


async def check(client: httpx.AsyncClient, route: str, content: bytes) -> None:
    response = await client.post(route, content=content)
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    assert not LEAK.search(response.text), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["param"], str | None)


@pytest.fixture
def fuzzed() -> httpx.AsyncClient:
    return make_client(build_app(make_context(FakeLLM())))


@FUZZ
@given(body=requests("prompt", prompts, names(CompletionRequest, REFUSED_COMPLETION)))
async def test_any_json_object_to_completions_is_answered_or_refused(
    fuzzed: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await check(fuzzed, "/v1/completions", json.dumps(body).encode())


@FUZZ
@given(body=requests("messages", st.one_of(messages, values), names(ChatRequest, REFUSED_CHAT)))
async def test_any_json_object_to_chat_is_answered_or_refused(fuzzed: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await check(fuzzed, "/v1/chat/completions", json.dumps(body).encode())


@settings(FUZZ, max_examples=60)
@given(content=st.one_of(st.binary(max_size=60), values.map(lambda value: json.dumps(value).encode())))
async def test_any_bytes_are_answered_or_refused(fuzzed: httpx.AsyncClient, content: bytes) -> None:
    for route in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/invocations"):
        await check(fuzzed, route, content)


@FUZZ
@given(
    body=st.one_of(
        requests("prompt", texts, ["model", "add_special_tokens", "return_token_strs"]),
        requests("messages", st.one_of(messages, values), names(TokenizeChatRequest, {})),
        requests("tokens", st.one_of(st.lists(st.integers(-1, 2**31), max_size=4), values), ["model"]),
    )
)
async def test_any_json_object_to_the_tokenizer_is_answered_or_refused(
    fuzzed: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    body.pop("max_tokens")
    for route in ("/tokenize", "/detokenize"):
        await check(fuzzed, route, json.dumps(body).encode())
