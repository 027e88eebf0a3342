"""``/v1/chat/completions``: conversations become prompts, outputs become messages."""

import json
from typing import Any

import pytest

from tests.server.conftest import Post, make_client, make_context
from tests.server.fake_llm import FakeLLM, letters, sse_events
from vllm_server.app import build_app


def prompt_of(llm: FakeLLM) -> str:
    """The text that the engine was given last."""
    text = llm.calls[-1].prompt["prompt"]
    assert isinstance(text, str)
    return text


async def test_a_conversation_gets_the_openai_response(chat: Post, llm: FakeLLM) -> None:
    response = await chat(model="fake", max_tokens=4)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "abcd"},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert body["usage"]["completion_tokens"] == 4
    assert prompt_of(llm) == "<user>hi</><assistant>"


async def test_the_template_alone_writes_special_tokens_unless_told_otherwise(chat: Post, llm: FakeLLM) -> None:
    await chat(max_tokens=1)
    assert llm.calls[-1].prompt["add_special_tokens"] is False
    await chat(max_tokens=1, add_special_tokens=True)
    assert llm.calls[-1].prompt["add_special_tokens"] is True


async def test_every_role_reaches_the_template(chat: Post, llm: FakeLLM) -> None:
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "function_call": None,
            "annotations": [],
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"x": 2, "y": 3}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    response = await chat(messages=messages, max_tokens=1)
    assert response.status_code == 200
    assert prompt_of(llm) == (
        "<system>rules</><user>a\nb</><assistant>[call add [('x', 2), ('y', 3)]]</><tool>5</><assistant>"
    )


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("choice", "told"), [({}, True), ({"tool_choice": "auto"}, True), ({"tool_choice": "none"}, False)]
)
async def test_tools_are_told_to_the_model_unless_it_must_not_use_them(
    chat: Post, llm: FakeLLM, choice: dict[str, Any], told: bool
) -> None:
    response = await chat(tools=[TOOL], max_tokens=1, **choice)
    assert response.status_code == 200
    assert prompt_of(llm).startswith(f"[tools {json.dumps([TOOL])}]") is told


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
async def test_a_forced_tool_call_is_refused_with_the_reason(chat: Post, choice: Any) -> None:
    response = await chat(tools=[TOOL], tool_choice=choice)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    assert "force" in response.json()["error"]["message"]


async def test_template_kwargs_reach_the_template_but_replace_nothing_of_the_servers(chat: Post, llm: FakeLLM) -> None:
    await chat(chat_template_kwargs={"mood": "merry"}, max_tokens=1)
    assert prompt_of(llm).startswith("[merry]")
    for name in ("messages", "tools", "add_generation_prompt", "chat_template", "tokenizer", "a b"):
        response = await chat(chat_template_kwargs={name: 1})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "chat_template_kwargs")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"chat_template_kwargs": {"modd": "merry"}}, "chat_template_kwargs.modd"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
async def test_what_the_template_does_not_read_is_refused(
    chat: Post, llm: FakeLLM, fields: dict[str, Any], param: str
) -> None:
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": "{{ messages[0].content }}"}
    response = await chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert llm.calls == []


async def test_what_is_false_needs_no_template_that_reads_it(chat: Post) -> None:
    """Clients turn thinking off whether or not the model can think."""
    switches = {"chat_template_kwargs": {"enable_thinking": False, "thinking": None}, "documents": []}
    assert (await chat(**switches, tools=[], max_tokens=1)).status_code == 200
    assert (await chat(tools=[TOOL], tool_choice="none", max_tokens=1)).status_code == 200


async def test_the_generation_prompt_can_be_left_out(chat: Post, llm: FakeLLM) -> None:
    response = await chat(add_generation_prompt=False, max_tokens=1)
    assert prompt_of(llm) == "<user>hi</>"
    assert response.json()["choices"][0]["message"]["role"] == "user"


async def test_the_last_message_of_the_assistant_can_be_continued(chat: Post, llm: FakeLLM) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    response = await chat(messages=messages, continue_final_message=True, max_tokens=1)
    assert response.status_code == 200
    assert prompt_of(llm) == "<user>hi</><assistant>Well"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"foo": True}}, "stream_options.foo"),
    ],
)
async def test_contradictions_and_mistakes_are_refused_by_name(
    chat: Post, llm: FakeLLM, fields: dict[str, Any], param: str
) -> None:
    response = await chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert llm.calls == []


async def test_a_prompt_too_long_is_blamed_on_the_messages(chat: Post) -> None:
    response = await chat(messages=[{"role": "user", "content": "x" * 600}])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_max_completion_tokens_wins_over_max_tokens(chat: Post, llm: FakeLLM) -> None:
    await chat(max_completion_tokens=2, max_tokens=5)
    assert llm.calls[-1].params.max_tokens == 2
    await chat(max_tokens=5)
    assert llm.calls[-1].params.max_tokens == 5
    await chat(stop="e")
    assert llm.calls[-1].params.max_tokens is None


async def test_a_stream_names_the_speaker_first_and_adds_up(chat: Post) -> None:
    response = await chat(max_tokens=5, n=2, stream=True, stream_options={"include_usage": True})
    *data, done = sse_events(response.text)
    assert done == "[DONE]"
    *chunks, usage = [json.loads(item) for item in data]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for index in range(2):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in choices[1:])
        assert "".join(choice["delta"]["content"] for choice in choices) == letters(5, index)
        assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 10


async def test_token_ids_come_on_request(chat: Post) -> None:
    body = (await chat(max_tokens=2, return_token_ids=True)).json()
    assert body["choices"][0]["token_ids"] == [97, 98]
    assert "".join(map(chr, body["prompt_token_ids"])) == "<user>hi</><assistant>"
    response = await chat(max_tokens=2, return_token_ids=True, stream=True)
    first, *chunks = [json.loads(item) for item in list(sse_events(response.text))[:-1]]
    assert first["prompt_token_ids"] == body["prompt_token_ids"]
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[97], [98]]


async def test_the_role_in_the_answers_can_be_set() -> None:
    async with make_client(build_app(make_context(FakeLLM(), response_role="sage"))) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["role"] == "sage"


async def test_without_a_tokenizer_a_chat_is_refused(chat: Post, llm: FakeLLM) -> None:
    llm.tokenizer = None
    response = await chat()
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_long_conversations_are_rendered_off_the_event_loop_to_the_same_text(
    chat: Post, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_server.prompts.rendering.LONG_CONVERSATION", 20)
    for times, rendered in ((10, 0), (11, 1)):
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}] * times
        response = await chat(messages=messages, max_tokens=1)
        assert response.status_code == 200
        assert prompt_of(llm) == "<user>x</><assistant></>" * times + "<assistant>"
        assert llm.rendered == rendered
