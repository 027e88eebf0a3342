"""The official client, sync and async, against a real server."""

import openai
import pytest

from tests.server.fake_llm import letters

KEY = "none"


@pytest.fixture
def sync_client(shared_live: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared_live}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def async_client(shared_live: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{shared_live}/v1", api_key=KEY, max_retries=0)


def test_models_are_listed_and_retrieved(sync_client: openai.OpenAI) -> None:
    assert [model.id for model in sync_client.models.list()] == ["fake", "alias"]
    assert sync_client.models.retrieve("alias").id == "alias"


def test_a_completion_is_whole(sync_client: openai.OpenAI) -> None:
    answer = sync_client.completions.create(model="fake", prompt="hi", max_tokens=4, logprobs=2, echo=True)
    assert answer.choices[0].text == "hi" + letters(4)
    assert answer.choices[0].finish_reason == "length"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.tokens[-4:] == ["a", "b", "c", "d"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 3 + 4


def test_a_completion_streams(sync_client: openai.OpenAI) -> None:
    stream = sync_client.completions.create(
        model="fake", prompt=["a", "b"], n=2, max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    texts = dict.fromkeys(range(4), "")
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "abc", 1: "bcd", 2: "abc", 3: "bcd"}
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 12


def test_a_chat_is_whole(sync_client: openai.OpenAI) -> None:
    answer = sync_client.chat.completions.create(
        model="fake",
        messages=[{"role": "system", "content": "rules"}, {"role": "user", "content": "hi"}],
        max_completion_tokens=4,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 5, "min_tokens": 1},
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == letters(4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [item.token for item in logprobs.content[0].top_logprobs] == ["a", "b"]


async def test_a_chat_streams(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == letters(4)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_an_answer_can_be_sent_back_as_it_came(async_client: openai.AsyncOpenAI) -> None:
    messages: list[object] = [{"role": "user", "content": "hi"}]
    first = await async_client.chat.completions.create(model="fake", messages=messages, max_tokens=2)  # type: ignore[call-overload]
    messages += [first.choices[0].message, {"role": "user", "content": "go on"}]
    second = await async_client.chat.completions.create(model="fake", messages=messages, max_tokens=2)  # type: ignore[call-overload]
    assert second.choices[0].message.content == "ab"


async def test_errors_arrive_as_the_clients_own_classes(async_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await async_client.completions.create(model="fake", prompt="hi", temperature=-1)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        await async_client.completions.create(model="nobody", prompt="hi")
    assert missing.value.param == "model"
    with pytest.raises(openai.RateLimitError):
        await async_client.completions.create(model="fake", prompt="!overloaded")
    with pytest.raises(openai.InternalServerError):
        await async_client.completions.create(model="fake", prompt="!fail")


async def test_an_error_in_the_middle_of_a_stream_is_raised(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.completions.create(model="fake", prompt="!fail-after-2", max_tokens=5, stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="could not finish"):
        async for chunk in stream:
            texts.append(chunk.choices[0].text)
    assert texts == ["a", "b"]
