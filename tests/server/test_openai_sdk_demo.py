"""The official client, sync and async, streaming and not, against the demo model in a server of its own process."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import KEY_OF_DEMO
from tests.server.demo_process import DemoProcess

ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def sync_client(demo: DemoProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key=KEY_OF_DEMO, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(demo: DemoProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key=KEY_OF_DEMO, max_retries=0) as client:
        yield client


def plain(value: Any) -> Any:
    """A client's object as plain data."""
    return None if value is None else value.model_dump()


def usage_of(answer: Any) -> tuple[int, int, int]:
    assert answer.usage is not None
    return answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens


def whole_completion(answer: Any) -> dict[str, Any]:
    """All of a completion but its id, its moment, and what the prefix cache happened to hold."""
    assert answer.object == "text_completion"
    choices = [
        {"text": choice.text, "finish_reason": choice.finish_reason, "logprobs": plain(choice.logprobs)}
        for choice in sorted(answer.choices, key=lambda choice: choice.index)
    ]
    return {"model": answer.model, "choices": choices, "usage": usage_of(answer)}


def streamed_completion(chunks: list[Any]) -> dict[str, Any]:
    """The same of what a stream adds up to."""
    assert len({chunk.id for chunk in chunks}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for part in chunk.choices:
            choice = choices.setdefault(part.index, {"text": "", "finish_reason": None, "logprobs": None})
            choice["text"] += part.text
            choice["finish_reason"] = choice["finish_reason"] or part.finish_reason
            if part.logprobs is not None:
                joined = choice["logprobs"] or {name: [] for name in plain(part.logprobs)}
                choice["logprobs"] = {name: joined[name] + values for name, values in plain(part.logprobs).items()}
    ordered = [choices[index] for index in sorted(choices)]
    return {"model": chunks[-1].model, "choices": ordered, "usage": usage_of(chunks[-1])}


def whole_chat(answer: Any) -> dict[str, Any]:
    """The same for a chat."""
    assert answer.object == "chat.completion"
    choices = [
        {
            "role": choice.message.role,
            "content": choice.message.content,
            "finish_reason": choice.finish_reason,
            "logprobs": [plain(item) for item in choice.logprobs.content] if choice.logprobs else [],
        }
        for choice in sorted(answer.choices, key=lambda choice: choice.index)
    ]
    return {"model": answer.model, "choices": choices, "usage": usage_of(answer)}


def streamed_chat(chunks: list[Any]) -> dict[str, Any]:
    """The same for the stream of a chat."""
    assert len({chunk.id for chunk in chunks}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks[:-1]:
        assert chunk.object == "chat.completion.chunk"
        for part in chunk.choices:
            fresh = {"role": part.delta.role, "content": "", "finish_reason": None, "logprobs": []}
            choice = choices.setdefault(part.index, fresh)
            choice["content"] += part.delta.content or ""
            choice["finish_reason"] = choice["finish_reason"] or part.finish_reason
            if part.logprobs is not None:
                choice["logprobs"] += [plain(item) for item in part.logprobs.content]
    ordered = [choices[index] for index in sorted(choices)]
    return {"model": chunks[-1].model, "choices": ordered, "usage": usage_of(chunks[-1])}


STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "max_tokens": 8},
    {"prompt": ["The capital of France is", "One two three"], "max_tokens": 6, "n": 2, "seed": 5, "temperature": 1},
    {"prompt": "The capital of France is", "max_tokens": 5, "logprobs": 3},
    {"prompt": "The capital of France is", "max_tokens": 3, "logprobs": 2, "echo": True},
    {"prompt": "The capital of France is", "max_tokens": 9, "stop": ["."]},
    {"prompt": [72, 101, 108], "max_tokens": 4},
    {"prompt": "Bücher 本 😀", "max_tokens": 12, "seed": 3, "temperature": 2},
    {"prompt": "Once", "max_tokens": 4, "logit_bias": {"100": 50}, "presence_penalty": 1, "frequency_penalty": 1},
    {"prompt": "Once", "max_tokens": 6, "extra_body": {"top_k": 3, "min_tokens": 6, "return_token_ids": True}},
]
CHATS: list[dict[str, Any]] = [
    {"max_tokens": 16},
    {"max_completion_tokens": 5, "n": 3, "seed": 7, "temperature": 1.5},
    {"max_tokens": 4, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 16, "stop": [" Paris"]},
    {"max_tokens": 8, "tools": [TOOL], "tool_choice": "auto"},
    {"max_tokens": 8, "messages": [{"role": "developer", "content": "Be brief."}, *ASKED]},
    {
        "max_tokens": 8,
        "messages": [*ASKED, {"role": "assistant", "content": "The capital"}],
        "extra_body": {"continue_final_message": True, "echo": True},
    },
    {"max_tokens": 8, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello 😀"}]}]},
]


@pytest.mark.parametrize("fields", COMPLETIONS, ids=range(len(COMPLETIONS)))
async def test_a_completion_is_the_same_however_it_comes(
    sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI, fields: dict[str, Any]
) -> None:
    sent = {"model": "demo", "temperature": 0, **fields}
    expected = whole_completion(sync_client.completions.create(**sent))
    assert len(expected["choices"]) == fields.get("n", 1) * (2 if fields.get("n") else 1)
    assert whole_completion(await async_client.completions.create(**sent)) == expected
    assert streamed_completion(list(sync_client.completions.create(**sent, **STREAM))) == expected
    stream = await async_client.completions.create(**sent, **STREAM)
    assert streamed_completion([chunk async for chunk in stream]) == expected


@pytest.mark.parametrize("fields", CHATS, ids=range(len(CHATS)))
async def test_a_chat_is_the_same_however_it_comes(
    sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI, fields: dict[str, Any]
) -> None:
    sent = {"model": "demo", "messages": ASKED, "temperature": 0, **fields}
    expected = whole_chat(sync_client.chat.completions.create(**sent))
    assert len(expected["choices"]) == fields.get("n", 1)
    assert whole_chat(await async_client.chat.completions.create(**sent)) == expected
    assert streamed_chat(list(sync_client.chat.completions.create(**sent, **STREAM))) == expected
    stream = await async_client.chat.completions.create(**sent, **STREAM)
    assert streamed_chat([chunk async for chunk in stream]) == expected


async def test_the_clients_own_accumulator_gives_the_whole_chat(
    sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    sent: dict[str, Any] = {"model": "demo", "messages": ASKED, "temperature": 0, "max_tokens": 16}
    expected = sync_client.chat.completions.create(**sent).choices[0]
    with sync_client.chat.completions.stream(**sent) as stream:
        kinds = [event.type for event in stream]
        got = stream.get_final_completion().choices[0]
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert (got.message.content, got.finish_reason) == (expected.message.content, expected.finish_reason)
    async with async_client.chat.completions.stream(**sent) as async_stream:
        got = (await async_stream.get_final_completion()).choices[0]
    assert (got.message.content, got.finish_reason) == (expected.message.content, expected.finish_reason)


async def test_models_are_listed_and_retrieved(sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI) -> None:
    (listed,) = sync_client.models.list()
    assert (listed.id, listed.object) == ("demo", "model")
    assert sync_client.models.retrieve("demo") == listed
    assert [model async for model in async_client.models.list()] == [listed]
    assert await async_client.models.retrieve("demo") == listed
    with pytest.raises(openai.NotFoundError):
        sync_client.models.retrieve("no/body")
    with pytest.raises(openai.NotFoundError):
        await async_client.models.retrieve("nobody")


async def test_a_label_comes_back_where_the_client_looks_for_it(
    sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    sent: dict[str, Any] = {"model": "demo", "messages": ASKED, "max_tokens": 1}
    raw = sync_client.chat.completions.with_raw_response.create(**sent, extra_headers={"X-Request-Id": "label-1"})
    assert raw.parse()._request_id == raw.request_id == "label-1"
    headers = {"X-Request-Id": "label-2"}
    async with async_client.completions.with_streaming_response.create(
        model="demo", prompt="x", max_tokens=2, stream=True, extra_headers=headers
    ) as response:
        assert response.request_id == "label-2"
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_errors_arrive_as_the_clients_own_classes(
    demo: DemoProcess, sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    for fields, param in (({"max_tokens": 10**6}, "max_tokens"), ({"top_p": 2}, "top_p"), ({"n": 0}, "n")):
        for stream in (False, True):
            sent: dict[str, Any] = {"model": "demo", "messages": ASKED, "stream": stream, **fields}
            with pytest.raises(openai.BadRequestError) as bad:
                sync_client.chat.completions.create(**sent)
            with pytest.raises(openai.BadRequestError) as also_bad:
                await async_client.chat.completions.create(**sent)
            assert bad.value.param == also_bad.value.param == param
            assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        await async_client.completions.create(model="nobody", prompt="x")
    stranger = openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="wrong", max_retries=0)
    for request in (
        stranger.completions.create(model="demo", prompt="x"),
        stranger.chat.completions.create(model="demo", messages=ASKED, stream=True),
        stranger.models.retrieve("demo"),
    ):
        with pytest.raises(openai.AuthenticationError) as refused:
            await request
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()


async def test_a_client_that_leaves_frees_the_engine(
    demo: DemoProcess, sync_client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    def aborted() -> float:
        page = httpx.get(f"{demo.url}/metrics", headers={"x-api-key": KEY_OF_DEMO}).text
        lines = [line for line in page.splitlines() if line.startswith("vllm:request_success_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'finished_reason="abort"' in line)

    before = aborted()
    sent: dict[str, Any] = {"model": "demo", "max_tokens": 1800, "extra_body": {"ignore_eos": True}}
    with sync_client.completions.create(prompt="Hello", stream=True, **sent) as stream:
        next(iter(stream))
    async with await async_client.chat.completions.create(messages=ASKED, stream=True, **sent) as async_stream:
        await anext(aiter(async_stream))
    with pytest.raises(openai.APITimeoutError):
        sync_client.completions.create(prompt="Hello", n=2, timeout=0.3, **sent)
    deadline = time.monotonic() + 5
    while aborted() < before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
