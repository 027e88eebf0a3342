"""``/v1/completions``: what is asked is what the engine gets, and what it answers is what the client gets."""

import json
from typing import Any

import pytest

from tests.server.conftest import Post
from tests.server.fake_llm import BOS, FakeLLM, letters, sse_events
from vllm_engine.config import EngineArgs
from vllm_engine.params import OutputKind


async def test_a_prompt_gets_the_openai_response(complete: Post) -> None:
    response = await complete(model="fake", prompt="hi", max_tokens=5)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "fake"
    assert abs(body["created"] - 1.6e9) < 1e9
    assert body["choices"] == [
        {"index": 0, "text": "abcde", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
    }


async def test_without_max_tokens_sixteen_are_made(complete: Post) -> None:
    assert (await complete(prompt="hi")).json()["choices"][0]["text"] == letters(16)


async def test_any_served_name_is_taken_and_given_back(complete: Post) -> None:
    assert (await complete(model="alias", prompt="hi")).json()["model"] == "alias"
    assert (await complete(prompt="hi")).json()["model"] == "fake"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
async def test_each_shape_of_prompt_reaches_the_engine(
    complete: Post, llm: FakeLLM, prompt: Any, expected: Any
) -> None:
    response = await complete(prompt=prompt, max_tokens=1)
    assert response.status_code == 200
    assert [call.prompt for call in llm.calls] == expected
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))


async def test_choices_of_several_prompts_and_n_are_numbered_prompt_by_prompt(complete: Post) -> None:
    body = (await complete(prompt=["x", "yy"], n=2, max_tokens=2)).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "ab"),
        (1, "bc"),
        (2, "ab"),
        (3, "bc"),
    ]
    assert body["usage"]["prompt_tokens"] == 2 + 3
    assert body["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_sampling_fields_reach_the_engine_as_they_are(complete: Post, llm: FakeLLM, stream: bool) -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "seed": 11,
        "stop": ["zz"],
        "stop_token_ids": [5, 6],
        "bad_words": ["bad"],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 3,
        "allowed_token_ids": [97, 98, 99],
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "truncate_prompt_tokens": 4,
    }
    llm.config = EngineArgs("fake", scheduling_policy="priority").create_config()
    response = await complete(
        prompt="hi", stream=stream, logit_bias={"97": 1.5}, priority=3, cache_salt="salt", **fields
    )
    assert response.status_code == 200
    (call,) = llm.calls
    assert {name: getattr(call.params, name) for name in fields} == fields
    assert call.params.logit_bias == {97: 1.5}
    assert (call.priority, call.cache_salt) == (3, "salt")
    assert call.params.output_kind is (OutputKind.DELTA if stream else OutputKind.FINAL_ONLY)


async def test_null_means_the_default(complete: Post, llm: FakeLLM) -> None:
    response = await complete(prompt="hi", n=None, temperature=None, stop=None, logit_bias=None, stream=None)
    assert response.status_code == 200
    assert llm.calls[0].params.temperature == 1.0


async def test_the_models_own_sampling_values_stand_unless_the_request_has_others(complete: Post, llm: FakeLLM) -> None:
    llm.defaults = {"temperature": 0.25, "top_k": 5, "max_tokens": 4}
    await complete(prompt="hi", top_k=9)
    params = llm.calls[0].params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 9, 4)


async def test_a_stop_string_ends_the_text_and_is_named(complete: Post) -> None:
    choice = (await complete(prompt="hi", stop=["x", "d"])).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "d")


async def test_echo_puts_the_prompt_before_the_text(complete: Post) -> None:
    assert (await complete(prompt="hi ", echo=True, max_tokens=2)).json()["choices"][0]["text"] == "hi ab"
    assert (await complete(prompt=[104, 105], echo=True, max_tokens=2)).json()["choices"][0]["text"] == "hiab"


async def test_echo_with_max_tokens_zero_scores_the_prompt_alone(complete: Post) -> None:
    body = (await complete(prompt="hi", echo=True, max_tokens=0, logprobs=0)).json()
    choice = body["choices"][0]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["tokens"] == ["<s>", "h", "i"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert body["usage"]["completion_tokens"] == 0


async def test_special_tokens_can_be_left_out(complete: Post, llm: FakeLLM) -> None:
    body = (await complete(prompt="hi", add_special_tokens=False, max_tokens=1)).json()
    assert llm.calls[0].prompt == {"prompt": "hi", "add_special_tokens": False}
    assert body["usage"]["prompt_tokens"] == 2


async def test_token_ids_come_on_request(complete: Post) -> None:
    choice = (await complete(prompt="hi", return_token_ids=True, max_tokens=2)).json()["choices"][0]
    assert choice["prompt_token_ids"] == [BOS, 104, 105]
    assert choice["token_ids"] == [97, 98]


async def test_a_stream_of_chunks_adds_up_to_the_whole_answer(complete: Post) -> None:
    whole = (await complete(prompt="hi", max_tokens=7)).json()["choices"][0]
    response = await complete(prompt="hi", max_tokens=7, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = sse_events(response.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert len(parsed) == 7
    assert len({chunk["id"] for chunk in parsed}) == 1
    assert {chunk["object"] for chunk in parsed} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in parsed) == whole["text"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in parsed]
    assert reasons == [None] * 6 + ["length"]
    assert all("usage" not in chunk for chunk in parsed)


async def test_each_choice_of_a_stream_keeps_its_index(complete: Post) -> None:
    response = await complete(prompt=["x", "y"], n=2, max_tokens=4, stream=True)
    texts = dict.fromkeys(range(4), "")
    for data in list(sse_events(response.text))[:-1]:
        (choice,) = json.loads(data)["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: letters(4), 1: letters(4, 1), 2: letters(4), 3: letters(4, 1)}


async def test_usage_comes_last_when_it_is_asked_for(complete: Post) -> None:
    response = await complete(prompt="hi", max_tokens=2, stream=True, stream_options={"include_usage": True})
    *chunks, last, _ = sse_events(response.text)
    assert [json.loads(chunk)["usage"] for chunk in chunks] == [None, None]
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"]["total_tokens"] == 5


async def test_continuous_usage_counts_up(complete: Post) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await complete(prompt="hi", max_tokens=3, stream=True, stream_options=options)
    counts = [json.loads(data)["usage"]["completion_tokens"] for data in list(sse_events(response.text))[:-1]]
    assert counts == [1, 2, 3, 3]


async def test_echo_in_a_stream_comes_once_with_the_first_chunk(complete: Post) -> None:
    response = await complete(prompt="hi ", echo=True, max_tokens=2, stream=True, logprobs=0)
    choices = [json.loads(data)["choices"][0] for data in list(sse_events(response.text))[:-1]]
    assert [choice["text"] for choice in choices] == ["hi a", "b"]
    assert choices[0]["logprobs"]["tokens"] == ["<s>", "h", "i", " ", "a"]
    assert choices[1]["logprobs"]["text_offset"] == [4]
