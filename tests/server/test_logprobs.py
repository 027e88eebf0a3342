"""Log-probabilities in both shapes, and in JSON without infinities."""

import json
import math

import httpx
import pytest

from tests.server.conftest import Post
from tests.server.fake_llm import FakeLLM, FakeTokenizer, sse_events
from vllm_engine.outputs import Logprob
from vllm_server.answers.logprobs import FLOOR, TokenNames, chat_logprobs, completion_logprobs, finite, prompt_logprobs


async def test_completions_list_tokens_offsets_and_alternatives(complete: Post) -> None:
    shown = (await complete(prompt="hi", max_tokens=2, logprobs=4)).json()["choices"][0]["logprobs"]
    assert shown == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["a", "b"],
        "top_logprobs": [
            {"a": -0.5, "b": -2.0, "c": -3.0, "d": FLOOR},
            {"b": -0.5, "c": -2.0, "d": -3.0, "e": FLOOR},
        ],
    }


async def test_many_are_written_without_holding_up_the_event_loop(
    complete: Post, chat: Post, client: httpx.AsyncClient, llm: FakeLLM
) -> None:
    few = (await complete(prompt="hi", max_tokens=2, logprobs=4)).json()["choices"][0]
    assert llm.rendered == 0
    many = (await complete(prompt="hi", max_tokens=400, n=4, logprobs=4)).json()["choices"]
    assert (llm.rendered, llm.rendered_size) == (1, 400 * 4 * 4)
    assert [len(choice["logprobs"]["tokens"]) for choice in many] == [400] * 4
    assert many[0]["logprobs"]["top_logprobs"][:2] == few["logprobs"]["top_logprobs"]
    assert (await chat(max_tokens=400, n=4, logprobs=True, top_logprobs=4)).status_code == 200
    assert llm.rendered == 2
    fields = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 20}
    response = (await client.post("/v1/responses", json={**fields, "max_output_tokens": 400})).json()
    assert len(response["output"][0]["content"][0]["logprobs"]) == 400
    assert llm.rendered == 3
    assert (await client.get(f"/v1/responses/{response['id']}")).json() == response


async def test_chat_lists_each_token_with_bytes_and_alternatives(chat: Post) -> None:
    content = (await chat(max_tokens=2, logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", "b"]
    assert content[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -2.0, "bytes": [98]},
        ],
    }


async def test_chat_without_top_logprobs_lists_the_tokens_alone(chat: Post) -> None:
    content = (await chat(max_tokens=1, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert content == [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}])
async def test_chat_without_logprobs_has_null(chat: Post, fields: dict[str, bool]) -> None:
    assert (await chat(max_tokens=1, **fields)).json()["choices"][0]["logprobs"] is None


async def test_a_stream_has_the_logprobs_of_the_whole_answer(chat: Post, complete: Post) -> None:
    fields = {"max_tokens": 3, "logprobs": True, "top_logprobs": 1}
    whole = (await chat(**fields)).json()["choices"][0]["logprobs"]["content"]
    chunks = [json.loads(item) for item in list(sse_events((await chat(stream=True, **fields)).text))[1:-1]]
    assert [item for chunk in chunks for item in chunk["choices"][0]["logprobs"]["content"]] == whole
    whole = (await complete(prompt="hi", max_tokens=3, logprobs=1)).json()["choices"][0]["logprobs"]
    response = await complete(prompt="hi", max_tokens=3, logprobs=1, stream=True)
    parts = [json.loads(item)["choices"][0]["logprobs"] for item in list(sse_events(response.text))[:-1]]
    assert {name: [item for part in parts for item in part[name]] for name in whole} == whole


async def test_tokens_can_be_named_by_their_ids(chat: Post, complete: Post) -> None:
    shown = (await complete(prompt="hi", max_tokens=1, logprobs=0, return_tokens_as_token_ids=True)).json()
    assert shown["choices"][0]["logprobs"]["tokens"] == ["token_id:97"]
    shown = (await chat(max_tokens=1, logprobs=True, return_tokens_as_token_ids=True)).json()
    assert shown["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:97"


async def test_prompt_logprobs_come_by_token_id(chat: Post, complete: Post) -> None:
    choice = (await complete(prompt="h", max_tokens=1, prompt_logprobs=1)).json()["choices"][0]
    assert choice["prompt_logprobs"] == [None, {"104": {"logprob": -0.5, "rank": 1, "decoded_token": "h"}}]
    body = (await chat(max_tokens=1, prompt_logprobs=1)).json()
    assert body["prompt_logprobs"][0] is None
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-1.5, -1.5), (0.0, 0.0), (-1e5, FLOOR), (-math.inf, FLOOR), (math.inf, FLOOR), (math.nan, FLOOR), (12.5, 12.5)],
)
def test_what_json_cannot_hold_becomes_the_floor(value: float, shown: float) -> None:
    assert finite(value) == shown
    names = TokenNames(FakeTokenizer(), as_ids=False)  # type: ignore[arg-type]
    position = {97: Logprob(value, 1, "a")}
    assert chat_logprobs([97], [position], names, num_top=1).content[0].top_logprobs[0].logprob == shown
    assert completion_logprobs([97], [position], names, offset=0).token_logprobs == [shown]
    assert prompt_logprobs([position]) == [{97: {"logprob": shown, "rank": 1, "decoded_token": "a"}}]


def test_of_two_tokens_with_the_same_text_the_likelier_stands() -> None:
    class Same(FakeTokenizer):
        def token_text(self, token_id: int) -> str:
            return "?"

    names = TokenNames(Same(), as_ids=False)  # type: ignore[arg-type]
    position = {1: Logprob(-3.0), 2: Logprob(-1.0), 3: Logprob(-2.0)}
    assert completion_logprobs([1], [position], names, offset=0).top_logprobs == [{"?": -1.0}]


def test_top_logprobs_of_minus_one_lists_all_in_order() -> None:
    names = TokenNames(FakeTokenizer(), as_ids=False)  # type: ignore[arg-type]
    position = {98: Logprob(-3.0), 97: Logprob(-1.0), 99: Logprob(-2.0)}
    top = chat_logprobs([98], [position], names, num_top=-1).content[0].top_logprobs
    assert [item.token for item in top] == ["a", "c", "b"]
