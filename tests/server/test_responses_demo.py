"""``/v1/responses`` by the official client against the demo model in a server of its own process."""

import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import KEY_OF_DEMO
from tests.server.demo_process import DemoProcess, until
from tests.server.response_events import check_events, strict

ASKED = "What is the capital of France?"
GREEDY: Any = {"model": "demo", "temperature": 0}
LONG: Any = {"model": "demo", "input": ASKED, "max_output_tokens": 1500, "extra_body": {"ignore_eos": True}}
LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.fixture
def client(demo: DemoProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo.url}/v1", api_key=KEY_OF_DEMO, max_retries=0)


@pytest.fixture
def async_client(demo: DemoProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key=KEY_OF_DEMO, max_retries=0)


def in_use(demo: DemoProcess) -> float:
    """Requests that run, and the share of the cache that they hold."""
    page = httpx.get(f"{demo.url}/metrics", headers={"x-api-key": KEY_OF_DEMO}).text
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(names))


def test_answers_are_those_of_the_chat_api(client: openai.OpenAI) -> None:
    rules, more = "Answer in one sentence.", "And of Italy?"
    messages: list[Any] = [{"role": "system", "content": rules}, {"role": "user", "content": ASKED}]
    previous: Any = openai.omit
    for question in (ASKED, more):
        chat = client.chat.completions.create(**GREEDY, messages=messages, max_tokens=30, logprobs=True, top_logprobs=2)
        made = client.responses.create(
            **GREEDY,
            input=question,
            instructions=rules,
            previous_response_id=previous,
            max_output_tokens=30,
            include=LOGPROBS,
            top_logprobs=2,
        )
        strict(made)
        choice = chat.choices[0]
        assert made.output_text == choice.message.content != ""
        assert made.status == ("completed" if choice.finish_reason == "stop" else "incomplete")
        assert made.usage is not None
        assert chat.usage is not None
        assert (made.usage.input_tokens, made.usage.output_tokens) == (
            chat.usage.prompt_tokens,
            chat.usage.completion_tokens,
        )
        assert choice.logprobs is not None
        shown = made.output[0].content[0].logprobs  # type: ignore[union-attr]
        assert [(item.token, item.bytes) for item in shown or []] == [
            (item.token, item.bytes) for item in choice.logprobs.content or []
        ]
        messages += [{"role": "assistant", "content": choice.message.content}, {"role": "user", "content": more}]
        previous = made.id


async def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI, async_client: openai.AsyncOpenAI) -> None:
    fields: Any = {**GREEDY, "input": "Tell me a story.", "max_output_tokens": 40}
    whole = client.responses.create(**fields)
    end = f"response.{whole.status}"
    for background in (False, True):
        events = list(client.responses.create(**fields, stream=True, background=background))
        last = check_events(events, end, background=background)
        assert last.output_text == whole.output_text
        assert client.responses.retrieve(last.id).output == last.output
        stream = await async_client.responses.create(**fields, stream=True, background=background)
        assert check_events([event async for event in stream], end, background=background).output_text == (
            whole.output_text
        )
    again = await async_client.responses.retrieve(last.id, stream=True, starting_after=4)
    assert [event async for event in again] == events[5:]


async def test_cancelling_frees_the_engine(demo: DemoProcess, async_client: openai.AsyncOpenAI) -> None:
    made = await async_client.responses.create(**LONG, background=True)
    until(lambda: in_use(demo) > 1, 5)
    assert (await async_client.responses.retrieve(made.id)).status == "in_progress"
    cancelled = strict(await async_client.responses.cancel(made.id))
    assert cancelled.status == "cancelled"
    assert cancelled.usage is not None
    assert 0 < cancelled.usage.output_tokens < 1500
    until(lambda: in_use(demo) == 0, 10)
    gone = await async_client.responses.create(**LONG, background=True)
    await async_client.responses.delete(gone.id)
    until(lambda: in_use(demo) == 0, 10)


def test_it_runs_on_when_its_client_leaves_and_a_plain_stream_does_not(
    demo: DemoProcess, client: openai.OpenAI
) -> None:
    with client.responses.create(**{**LONG, "max_output_tokens": 60}, background=True, stream=True) as stream:
        made = next(iter(stream)).response  # type: ignore[union-attr]
    deadline = time.monotonic() + 10
    while client.responses.retrieve(made.id).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = client.responses.retrieve(made.id)
    assert done.usage is not None
    assert done.usage.output_tokens == 60
    with client.responses.create(**LONG, stream=True) as stream:
        left = next(iter(stream)).response  # type: ignore[union-attr]
    until(lambda: in_use(demo) == 0, 10)
    assert client.responses.retrieve(left.id).status == "cancelled"


def test_a_long_conversation_is_shortened(client: openai.OpenAI) -> None:
    turn: list[Any] = [{"role": "user", "content": ASKED * 20}, {"role": "assistant", "content": "Paris. " * 20}]
    fields: Any = {**GREEDY, "input": [*turn * 30, {"role": "user", "content": ASKED}], "max_output_tokens": 20}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**fields)
    assert refused.value.param in ("input", "max_output_tokens")
    made = client.responses.create(**fields, truncation="auto")
    assert made.usage is not None
    assert made.usage.input_tokens_details.model_extra is not None
    assert made.usage.input_tokens_details.model_extra["dropped_messages"] % 2 == 0
    assert 1024 < made.usage.input_tokens <= 2048 - 256
    counted = client.responses.input_tokens.count(model="demo", input=fields["input"], truncation="auto")
    assert abs(counted.input_tokens - made.usage.input_tokens) < 500  # without an answer, other turns may stay
