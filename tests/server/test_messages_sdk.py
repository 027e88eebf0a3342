"""Anthropic's official client, sync and async, against a real server with the demo model in a process of its own."""

import time
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.server.conftest import KEY_OF_DEMO
from tests.server.demo_process import DemoProcess

ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}
"""Newer clients know no temperature; the API does."""
SAME: dict[str, Any] = {"model": "demo", "messages": ASKED, "max_tokens": 24, "extra_body": GREEDY}


@pytest.fixture
def sync_client(demo: DemoProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo.url, api_key=KEY_OF_DEMO, max_retries=0)


@pytest.fixture
def async_client(demo: DemoProcess) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=demo.url, api_key=KEY_OF_DEMO, max_retries=0)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def told(message: Any) -> tuple[Any, ...]:
    """All of a message but its id, and but what depends on what the prefix cache happens to hold."""
    usage = message.usage
    read = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return (
        message.role,
        message.model,
        text_of(message),
        message.stop_reason,
        message.stop_sequence,
        read,
        usage.output_tokens,
    )


async def test_a_message_is_the_same_however_it_comes(
    sync_client: anthropic.Anthropic, async_client: anthropic.AsyncAnthropic
) -> None:
    whole = sync_client.messages.create(**SAME)
    assert whole.type == "message"
    assert whole.id.startswith("msg")
    assert "Paris" in text_of(whole)
    assert whole.stop_reason == "end_turn"
    assert told(await async_client.messages.create(**SAME)) == told(whole)
    with sync_client.messages.stream(**SAME) as stream:
        assert "".join(stream.text_stream) == text_of(whole)
        assert told(stream.get_final_message()) == told(whole)
    async with async_client.messages.stream(**SAME) as async_stream:
        assert "".join([piece async for piece in async_stream.text_stream]) == text_of(whole)
        assert told(await async_stream.get_final_message()) == told(whole)


async def test_the_events_of_a_stream(sync_client: anthropic.Anthropic, async_client: anthropic.AsyncAnthropic) -> None:
    fields = {**SAME, "max_tokens": 3, "stream": True}
    for events in (
        list(sync_client.messages.create(**fields)),
        [event async for event in await async_client.messages.create(**fields)],
    ):
        kinds = [event.type for event in events]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert events[-2].delta.stop_reason == "max_tokens"
        assert events[-2].usage.output_tokens == 3


def test_a_stop_sequence_ends_the_answer_and_is_told(sync_client: anthropic.Anthropic) -> None:
    fields = {**SAME, "stop_sequences": ["Rome", " Paris"]}
    message = sync_client.messages.create(**fields)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " Paris")
    assert text_of(message).endswith("is")
    with sync_client.messages.stream(**fields) as stream:
        assert told(stream.get_final_message()) == told(message)


def test_an_answer_without_text_has_no_block(sync_client: anthropic.Anthropic) -> None:
    fields = {**SAME, "stop_sequences": ["The"]}
    message = sync_client.messages.create(**fields)
    assert (message.content, message.stop_sequence, message.usage.output_tokens) == ([], "The", 1)
    with sync_client.messages.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        assert told(stream.get_final_message()) == told(message)
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_the_beta_client_and_the_list_of_models_work_too(sync_client: anthropic.Anthropic) -> None:
    message = sync_client.beta.messages.create(model="demo", max_tokens=24, messages=ASKED, extra_body=GREEDY)
    assert "Paris" in text_of(message)
    assert [model.id for model in sync_client.models.list()] == ["demo"]


def test_a_conversation_goes_on_with_what_came_back(sync_client: anthropic.Anthropic) -> None:
    first = sync_client.messages.create(**SAME)
    talk = [*ASKED, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And of Italy?"}]
    second = sync_client.messages.create(**{**SAME, "messages": talk})
    assert "Rome" in text_of(second)
    assert second.usage.cache_read_input_tokens


def test_the_assistant_goes_on_with_its_own_words(sync_client: anthropic.Anthropic) -> None:
    talk = [*ASKED, {"role": "assistant", "content": "The capital of France is"}]
    message = sync_client.messages.create(**{**SAME, "messages": talk})
    assert text_of(message).startswith(" Paris")


def test_answers_are_those_of_the_chat_api(demo: DemoProcess, sync_client: anthropic.Anthropic) -> None:
    chat = openai.OpenAI(base_url=f"{demo.url}/v1", api_key=KEY_OF_DEMO, max_retries=0)
    for system in ("Be brief.", None):
        talk = ASKED if system is None else [{"role": "system", "content": system}, *ASKED]
        expected = chat.chat.completions.create(model="demo", messages=talk, max_tokens=24, temperature=0)
        message = sync_client.messages.create(**SAME, **({} if system is None else {"system": system}))
        assert text_of(message) == expected.choices[0].message.content
        assert expected.usage is not None
        assert told(message)[-2:] == (expected.usage.prompt_tokens, expected.usage.completion_tokens)


async def test_tokens_are_counted_as_they_are_used(
    sync_client: anthropic.Anthropic, async_client: anthropic.AsyncAnthropic
) -> None:
    tool = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
    for number, fields in enumerate(
        (
            {},
            {"system": "Be brief."},
            {"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief. ✓"}], "tools": [tool]},
            {"messages": [*ASKED, {"role": "assistant", "content": "The"}], "thinking": {"type": "disabled"}},
        )
    ):
        counted = {"model": "demo", "messages": ASKED, **fields}
        count = sync_client.messages.count_tokens(**counted).input_tokens
        assert (await async_client.messages.count_tokens(**counted)).input_tokens == count
        # With a salt of its own, nothing of the prompt can come out of the cache.
        salt = {"cache_salt": f"salt {number} {time.monotonic_ns()}"}
        usage = sync_client.messages.create(**counted, max_tokens=1, extra_body=salt).usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (count, 0)
        usage = sync_client.messages.create(**counted, max_tokens=1, extra_body=salt).usage
        assert usage.cache_read_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens == count


async def test_errors_arrive_as_the_clients_own_classes(
    demo: DemoProcess, sync_client: anthropic.Anthropic, async_client: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as bad:
        sync_client.messages.create(**{**SAME, "extra_body": {"temperature": -1}})
    assert bad.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    assert bad.value.request_id == bad.value.body["request_id"]  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        async with async_client.messages.stream(**{**SAME, "max_tokens": 10**6}) as stream:
            await stream.get_final_message()
    with pytest.raises(anthropic.NotFoundError):
        await async_client.messages.create(**{**SAME, "model": "nobody"})
    with pytest.raises(anthropic.NotFoundError):
        sync_client.messages.count_tokens(model="nobody", messages=ASKED)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=demo.url, api_key="wrong", max_retries=0).messages.create(**SAME)
    with_token = anthropic.Anthropic(base_url=demo.url, auth_token=KEY_OF_DEMO, api_key=None, max_retries=0)
    assert "Paris" in text_of(with_token.messages.create(**SAME))


def test_a_label_comes_back_where_the_client_looks_for_it(sync_client: anthropic.Anthropic) -> None:
    raw = sync_client.messages.with_raw_response.create(**SAME, extra_headers={"X-Request-Id": "label-1"})
    assert raw.headers["request-id"] == "label-1"
    assert raw.parse()._request_id == "label-1"


def test_a_client_that_leaves_frees_the_engine(demo: DemoProcess, sync_client: anthropic.Anthropic) -> None:
    def aborted() -> float:
        page = httpx.get(f"{demo.url}/metrics", headers={"x-api-key": KEY_OF_DEMO}).text
        lines = [line for line in page.splitlines() if line.startswith("vllm:request_success_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'finished_reason="abort"' in line)

    before, deadline = aborted(), time.monotonic() + 20
    # Some hot answers end by themselves before their client leaves.
    while aborted() == before:
        assert time.monotonic() < deadline
        with sync_client.messages.stream(**{**SAME, "max_tokens": 1800, "extra_body": {"temperature": 2}}) as stream:
            next(stream.text_stream)
        time.sleep(0.1)
