"""``/v1/responses`` through the official client, sync and async, whole and as a stream, kept and in the background."""

import asyncio
from typing import Any

import openai
import pytest

from tests.server.fake_llm import letters
from tests.server.response_events import check_events, strict

LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.fixture
def client(shared_live: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared_live}/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(shared_live: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{shared_live}/v1", api_key="none", max_retries=0)


def test_a_response_is_whole_and_can_be_had_again(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model="fake",
        input="hi",
        instructions="be brief",
        max_output_tokens=4,
        include=LOGPROBS,
        top_logprobs=2,
        metadata={"job": "7"},
        user="me",
        temperature=0.5,
        extra_body={"stop": "c", "top_k": 5},
    )
    strict(made)
    assert (made.status, made.output_text, made.incomplete_details) == ("completed", "abc", None)
    assert made.completed_at is not None
    assert (made.metadata, made.user, made.temperature, made.instructions) == ({"job": "7"}, "me", 0.5, "be brief")
    (message,) = made.output
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert [item.token for item in message.content[0].logprobs or []] == ["a", "b", "c"]
    assert [item.token for item in (message.content[0].logprobs or [])[0].top_logprobs] == ["a", "b"]
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + 3
    assert client.responses.retrieve(made.id) == made
    assert [item.content[0].text for item in client.responses.input_items.list(made.id)] == ["hi"]  # type: ignore[union-attr]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    made = strict(client.responses.create(model="fake", input="hi", max_output_tokens=4))
    assert (made.status, made.output_text) == ("incomplete", letters(4))
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete"  # type: ignore[union-attr]


@pytest.mark.parametrize(("stop", "end"), [("d", "response.completed"), ("!", "response.incomplete")])
def test_a_stream_has_the_documented_events(client: openai.OpenAI, stop: str, end: str) -> None:
    fields: Any = {"model": "fake", "input": "hi", "max_output_tokens": 6, "extra_body": {"stop": stop}}
    fields |= {"include": LOGPROBS, "top_logprobs": 1}
    last = check_events(client.responses.create(**fields, stream=True), end)
    assert client.responses.retrieve(last.id) == last
    whole = client.responses.create(**fields)
    different = {"id", "created_at", "completed_at", "output"}
    assert whole.model_dump(exclude=different) == last.model_dump(exclude=different)
    assert whole.output_text == last.output_text
    assert whole.output[0].content[0].logprobs == last.output[0].content[0].logprobs  # type: ignore[union-attr]


def test_the_clients_own_accumulation_of_a_stream_agrees(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="hi", extra_body={"stop": "e"}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == letters(5)


async def test_a_conversation_goes_on_from_its_last_response(async_client: openai.AsyncOpenAI) -> None:
    first = await async_client.responses.create(
        model="fake", input=[{"role": "user", "content": "hi"}], instructions="rules", max_output_tokens=2
    )
    second = await async_client.responses.create(
        model="fake",
        input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go on"}]}],
        previous_response_id=first.id,
        max_output_tokens=2,
        extra_body={"enable_response_messages": True},
    )
    assert second.previous_response_id == first.id
    # The instructions of a response hold for it alone.
    assert second.model_extra is not None
    (read,) = second.model_extra["input_messages"]
    assert read["message"] == "<user>hi</><assistant>ab</><user>go on</><assistant>"
    assert bytes(read["tokens"]).decode() == read["message"]
    assert second.model_extra["output_messages"][0]["message"] == "ab"
    items = [item async for item in async_client.responses.input_items.list(second.id, limit=2, order="asc")]
    assert [item.role for item in items] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    latest = await async_client.responses.input_items.list(second.id, limit=1)
    assert [item.id for item in latest.data] == [items[2].id]
    assert latest.has_more is True


async def test_an_answer_can_be_sent_back_as_it_came(async_client: openai.AsyncOpenAI) -> None:
    first = await async_client.responses.create(
        model="fake", input="hi", store=False, max_output_tokens=2, include=LOGPROBS
    )
    second: Any = await async_client.responses.create(
        model="fake",
        input=[{"role": "user", "content": "hi"}, *first.output, {"role": "user", "content": "more"}],  # type: ignore[list-item]
        max_output_tokens=2,
        extra_body={"enable_response_messages": True},
    )
    assert second.input_messages[0]["message"] == "<user>hi</><assistant>ab</><user>more</><assistant>"
    with pytest.raises(openai.NotFoundError):
        await async_client.responses.retrieve(first.id)


async def test_tools_and_their_calls_reach_the_template(async_client: openai.AsyncOpenAI) -> None:
    made: Any = await async_client.responses.create(
        model="fake",
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        input=[
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
        max_output_tokens=2,
        extra_body={"enable_response_messages": True},
    )
    strict(made)
    text = made.input_messages[0]["message"]
    assert text.startswith("[tools ")
    assert "[call f [('a', 1)]]</><tool>42</><assistant>" in text
    items = (await async_client.responses.input_items.list(made.id, order="asc")).data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


async def test_a_response_in_the_background_is_asked_for_until_it_is_there(async_client: openai.AsyncOpenAI) -> None:
    made = strict(await async_client.responses.create(model="fake", input="hi", max_output_tokens=5, background=True))
    assert made.background
    while made.status in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
        made = strict(await async_client.responses.retrieve(made.id))
    assert (made.status, made.output_text) == ("incomplete", letters(5))
    assert await async_client.responses.cancel(made.id) == made
    with pytest.raises(openai.BadRequestError, match="background and stream"):
        await async_client.responses.retrieve(made.id, stream=True)


async def test_a_stream_in_the_background_can_be_taken_up_anywhere(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.responses.create(
        model="fake", input="hi", max_output_tokens=5, background=True, stream=True
    )
    events = [event async for event in stream]
    last = check_events(events, "response.incomplete", background=True)
    for after in (-1, 0, 6, len(events) - 1):
        options: Any = {} if after < 0 else {"starting_after": after}
        again = await async_client.responses.retrieve(last.id, stream=True, **options)
        assert [event async for event in again] == events[after + 1 :]


def test_input_tokens_are_counted_as_they_are_used(client: openai.OpenAI) -> None:
    fields: Any = {"model": "fake", "input": "hi", "instructions": "rules"}
    made = client.responses.create(**fields, max_output_tokens=1)
    assert made.usage is not None
    assert client.responses.input_tokens.count(**fields).input_tokens == made.usage.input_tokens


async def test_errors_arrive_as_the_clients_own_classes(async_client: openai.AsyncOpenAI) -> None:
    create = async_client.responses.create
    for background in (False, True):
        for stream in (False, True):
            options: Any = {"background": background, "stream": stream}
            with pytest.raises(openai.BadRequestError) as bad:
                await create(model="fake", input="x" * 600, **options)
            assert bad.value.param == "input"
            with pytest.raises(openai.RateLimitError):
                await create(model="fake", input="!overloaded", **options)
            with pytest.raises(openai.InternalServerError):
                await create(model="fake", input="!boom", **options)
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="fake", input="hi", previous_response_id="resp_none")
    assert missing.value.param == "previous_response_id"


@pytest.mark.parametrize("background", [False, True])
async def test_an_error_in_the_middle_is_the_end_of_the_response(
    async_client: openai.AsyncOpenAI, background: bool
) -> None:
    stream = await async_client.responses.create(
        model="fake", input="!fail-after-2", max_output_tokens=5, stream=True, background=background
    )
    last = check_events([event async for event in stream], "response.failed", background=background)
    assert last.output_text == "ab"
    assert last.error is not None
    assert (last.error.code, "could not finish" in last.error.message) == ("server_error", True)
    assert await async_client.responses.retrieve(last.id) == last
    with pytest.raises(openai.BadRequestError) as bad:
        await async_client.responses.create(model="fake", input="more", previous_response_id=last.id)
    assert bad.value.param == "previous_response_id"
