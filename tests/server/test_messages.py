"""``/v1/messages``: conversations in Anthropic's shape become prompts, outputs become its messages and events."""

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.server.batch_folder import Folder, answer, line
from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import CHAT_TEMPLATE, FakeLLM, letters
from vllm_server.app import build_app
from vllm_server.batch.app import Answer
from vllm_server.batch.result import answered
from vllm_server.protocol.fields import REFUSED_MESSAGES
from vllm_server.protocol.messages import CountTokensRequest, MessagesRequest

ROUTE = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "max_tokens": 4, "messages": HI, **fields}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each named by its own type."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert response.text.endswith("\n\n")
    return found


def gathered(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events of a stream add up to."""
    message: dict[str, Any] = parts[0]["message"]
    for part in parts:
        if part["type"] == "content_block_start":
            message["content"].append(part["content_block"])
        elif part["type"] == "content_block_delta":
            message["content"][part["index"]]["text"] += part["delta"]["text"]
        elif part["type"] == "message_delta":
            message |= part["delta"] | {"usage": part["usage"]}
    return message


async def test_an_answer_is_a_message(client: httpx.AsyncClient) -> None:
    response = await client.post(ROUTE, json=body(), headers={"anthropic-version": "2023-06-01", "X-Request-Id": "me"})
    answer = response.json()
    assert response.headers["request-id"] == response.headers["x-request-id"] == "me"
    assert answer.pop("id").startswith("msg")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": letters(4), "citations": None}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len("<user>hi</><assistant>"),
            "output_tokens": 4,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": None,
        },
    }


async def test_a_stream_has_the_events_in_their_order(client: httpx.AsyncClient) -> None:
    parts = events(await client.post(ROUTE, json=body(stream=True)))
    assert [part["type"] for part in parts] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = parts[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert parts[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 1}, {"stop_sequences": ["d", "c"], "max_tokens": 9}])
async def test_a_stream_adds_up_to_the_whole_answer(fields: dict[str, Any], details: bool) -> None:
    app = build_app(make_context(FakeLLM(), enable_prompt_tokens_details=details))
    async with make_client(app) as client:
        whole = await client.post(ROUTE, json=body(**fields))
        stream = await client.post(ROUTE, json=body(stream=True, **fields))
    added, expected = gathered(events(stream)), whole.json()
    assert added.pop("id") != expected.pop("id")
    assert added == expected


async def test_a_stop_sequence_is_told(client: httpx.AsyncClient) -> None:
    answer = (await client.post(ROUTE, json=body(stop_sequences=["x", "c"], max_tokens=9))).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "c")


async def test_what_the_operator_stops_at_ends_a_turn() -> None:
    async with make_client(build_app(make_context(FakeLLM(defaults={"stop": "b"})))) as client:
        answer = (await client.post(ROUTE, json=body())).json()
    assert (answer["stop_reason"], answer["stop_sequence"], answer["usage"]["output_tokens"]) == ("end_turn", None, 2)


async def test_cached_tokens_are_told_apart_where_the_operator_wants_it() -> None:
    async with make_client(build_app(make_context(FakeLLM(), enable_prompt_tokens_details=True))) as client:
        usage = (await client.post(ROUTE, json=body())).json()["usage"]
    assert usage == {
        "input_tokens": 6,
        "output_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 16,
    }


CALL = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"system": "be good"}, "<system>be good</><user>hi</><assistant>"),
        ({"system": [text("be"), text("good")]}, "<system>be\ngood</><user>hi</><assistant>"),
        ({"system": ""}, "<user>hi</><assistant>"),
        ({"messages": [{"role": "user", "content": [text("a"), text("b")]}]}, "<user>a\nb</><assistant>"),
        ({"messages": [*HI, *HI]}, "<user>hi\nhi</><assistant>"),
        ({"messages": [*HI, {"role": "assistant", "content": "We"}]}, "<user>hi</><assistant>We"),
        ({"messages": [*HI, {"role": "assistant", "content": [text("We")]}]}, "<user>hi</><assistant>We"),
        (
            {"messages": [*HI, {"role": "system", "content": "now"}, *HI]},
            "<user>hi</><system>now</><user>hi</><assistant>",
        ),
        (
            {
                "messages": [
                    *HI,
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, text("so"), CALL]},
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "2"}, text("?")],
                    },
                ]
            },
            "<user>hi</><assistant>so[call add [('a', 1)]]</><tool>2</><user>?</><assistant>",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [CALL]},
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t1",
                                "is_error": True,
                                "content": [text("a"), text("b")],
                            },
                            {"type": "tool_result", "tool_use_id": "t2"},
                        ],
                    },
                ]
            },
            "<assistant>[call add [('a', 1)]]</><tool>Error: a\nb</><tool></><assistant>",
        ),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]},
            '[tools [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": '
            '"object"}}}]]<user>hi</><assistant>',
        ),
        (
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "none"}},
            "<user>hi</><assistant>",
        ),
    ],
)
async def test_a_conversation_becomes_a_prompt(
    client: httpx.AsyncClient, llm: FakeLLM, fields: dict[str, Any], prompt: str
) -> None:
    answer = await client.post(ROUTE, json=body(**fields))
    assert answer.status_code == 200, answer.text
    assert llm.calls[0].prompt == {"prompt": prompt, "add_special_tokens": False}
    # The same conversation is counted as it is read.
    counted = {name: value for name, value in body(**fields).items() if name != "max_tokens"}
    count = await client.post(f"{ROUTE}/count_tokens", json=counted)
    assert count.json() == {"input_tokens": answer.json()["usage"]["input_tokens"]}


async def test_a_receipt_comes_with_the_end(client: httpx.AsyncClient) -> None:
    header = {"x-vllm-include-receipt": "true"}
    whole = (await client.post(ROUTE, json=body(), headers=header)).json()["receipt"]
    *_, last = events(await client.post(ROUTE, json=body(stream=True, include_receipt=True)))
    assert last["type"] == "message_stop"
    for receipt in (whole, last["receipt"]):
        assert (receipt["prompt_tokens"], receipt["generated_tokens"]) == (22, 4)
        parts = [receipt[f"{name}_time"] for name in ("preparation", "queue", "prefill", "decode", "delivery")]
        assert sum(parts) == pytest.approx(receipt["total_time"], abs=2e-3)


async def test_sampling_reaches_the_engine(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    fields = {"temperature": 0.5, "top_k": 5, "top_p": 0.5, "stop_sequences": ["x"], "max_tokens": 7}
    await client.post(ROUTE, json=body(**fields, cache_salt="salt", vllm_xargs={"a": 1}))
    (call,) = llm.calls
    assert (call.params.temperature, call.params.top_k, call.params.top_p) == (0.5, 5, 0.5)
    assert (call.params.stop, call.params.max_tokens, call.params.extra_args) == (["x"], 7, {"a": 1})
    assert call.cache_salt == "salt"


# The request class of the peer's newest release.
DOCUMENTED = """
    model messages max_tokens metadata output_config thinking stop_sequences stream system temperature tool_choice tools
    top_k top_p mm_payload return_mm_kwargs cache_salt watermarking kv_transfer_params ec_transfer_params vllm_xargs
    chat_template_kwargs
""".split()
TOOLS = [{"name": "f", "input_schema": {}}]

# Field -> a value, and what must stand beside it with and without.
EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("alias", {}),
    "messages": ([*HI, {"role": "assistant", "content": "We"}], {}),
    "system": ("be good", {}),
    "tools": (TOOLS, {}),
    "tool_choice": ({"type": "none"}, {"tools": TOOLS}),
    "thinking": ({"type": "disabled"}, {}),
    "output_config": ({"effort": "low"}, {}),
    "chat_template_kwargs": ({"mood": "good"}, {}),
    "max_tokens": (2, {}),
    "stop_sequences": (["b"], {}),
    "stream": (True, {}),
    "temperature": (0.5, {}),
    "top_k": (5, {}),
    "top_p": (0.5, {}),
    "cache_salt": ("salt", {}),
    "vllm_xargs": ({"a": 1}, {}),
    "include_receipt": (True, {}),
}
HINTS: dict[str, Any] = {"metadata": {"user_id": "me"}, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
"""Labels for the operator's books and caches: read, checked, and without a promised effect."""


def names_of(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


async def seen(route: str, sent: dict[str, Any]) -> str:
    """All that can be seen of a request, but for what is made up anew for each."""
    llm = FakeLLM()
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": CHAT_TEMPLATE + "{{ reasoning_effort }}{{ enable_thinking }}"}
    async with make_client(build_app(make_context(llm))) as client:
        response = await client.post(route, json=sent)
    assert response.status_code == 200, response.text
    parts = events(response) if sent.get("stream") else [response.json()]
    parts[0].get("message", parts[0]).pop("id", None)
    calls = [(call.prompt, call.params, call.priority, call.cache_salt) for call in llm.calls]
    return f"{parts} {calls}"


def test_each_documented_field_is_honoured_or_refused_or_a_hint() -> None:
    assert set(DOCUMENTED) <= names_of(MessagesRequest) | REFUSED_MESSAGES.keys()
    assert names_of(MessagesRequest) == EFFECTS.keys() | HINTS.keys()


@pytest.mark.parametrize("name", sorted(EFFECTS))
async def test_a_field_changes_something(name: str) -> None:
    value, beside = EFFECTS[name]
    assert await seen(ROUTE, body(**beside) | {name: value}) != await seen(ROUTE, body(**beside))


@pytest.mark.parametrize("name", sorted((names_of(CountTokensRequest) & EFFECTS.keys()) - {"model"}))
async def test_a_field_changes_the_count(name: str) -> None:
    value, beside = EFFECTS[name]
    counted = {"messages": HI, **beside}
    route = f"{ROUTE}/count_tokens"
    assert await seen(route, counted | {name: value}) != await seen(route, counted)


@pytest.mark.parametrize("name", sorted(HINTS))
async def test_a_hint_changes_nothing(name: str) -> None:
    assert await seen(ROUTE, body(**{name: HINTS[name]})) == await seen(ROUTE, body())


async def test_a_hint_may_stand_at_each_block() -> None:
    marked = [{**text("hi"), "cache_control": HINTS["cache_control"]}]
    assert await seen(ROUTE, body(messages=[{"role": "user", "content": marked}])) == await seen(ROUTE, body())


async def test_the_page_of_schemas_has_its_shapes(client: httpx.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    answers = description["paths"][ROUTE]["post"]["responses"]
    assert answers["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/MessagesErrorBody")
    assert {"max_tokens", "messages"} <= set(description["components"]["schemas"]["MessagesRequest"]["required"])


async def test_a_line_of_a_batch_may_be_a_message(tmp_path: Path, client: httpx.AsyncClient) -> None:
    folder = Folder(tmp_path)
    lines = [line(name, url=ROUTE, **body(max_tokens=count)) for name, count in (("good", 4), ("bad", 0))]
    assert await answer(folder, FakeLLM(), *lines) == (2, 1)
    good, bad = folder.results()
    assert good["response"]["body"]["content"][0]["text"] == letters(4)
    assert "max_tokens" in bad["error"]["message"]
    whole = (await client.post(ROUTE, json=body())).content
    counted = answered("good", Answer(200, "label", whole))
    assert (counted.prompt_tokens, counted.completion_tokens) == (len("<user>hi</><assistant>"), 4)
