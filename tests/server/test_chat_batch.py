"""Several conversations in one request: each is answered as it is alone."""

from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_server.app import build_app

ROUTE = "/v1/chat/completions/batch"
TALKS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "and you?"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}],
]
OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 4},
    {"max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 2, "return_token_ids": True, "prompt_logprobs": 1},
    {"max_tokens": 9, "stop": "d", "include_stop_str_in_output": True, "chat_template_kwargs": {"mood": "good"}},
    {"max_tokens": 2, "model": "alias", "tools": [], "stream": False, "n": 1, "user": "me"},
]


@pytest.mark.parametrize("options", OPTIONS)
async def test_each_conversation_is_answered_as_it_is_alone(client: httpx.AsyncClient, options: dict[str, Any]) -> None:
    alone = [(await client.post("/v1/chat/completions", json={"messages": talk, **options})).json() for talk in TALKS]
    response = await client.post(ROUTE, json={"messages": TALKS, **options})
    assert response.status_code == 200, response.text
    batch = response.json()
    for index, (choice, single) in enumerate(zip(batch["choices"], alone, strict=True)):
        (expected,) = single["choices"]
        of_prompt = {name: single[name] for name in ("prompt_token_ids", "prompt_logprobs") if name in single}
        assert choice == {**expected, **of_prompt, "index": index}
    for name, tokens in batch["usage"].items():
        assert tokens == sum(single["usage"][name] for single in alone)
    assert (batch["object"], batch["model"]) == ("chat.completion", alone[0]["model"])


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages[0]"),
        ({"messages": TALKS[0]}, "messages"),
        ({"messages": [TALKS[0]] * 1025}, "messages"),
        ({"messages": [TALKS[0], [{"role": "user"}]]}, "messages[1][0].content"),
        ({"messages": [TALKS[0], [{"role": "boss", "content": "x"}]]}, "messages[1][0].role"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"nonsense": 1}, "nonsense"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
async def test_what_a_batch_does_not_take_is_refused_by_name(
    client: httpx.AsyncClient, llm: FakeLLM, wrong: dict[str, Any], param: str
) -> None:
    response = await client.post(ROUTE, json={"messages": TALKS, "max_tokens": 2, **wrong})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"] or "").startswith(param), error
    assert llm.running == set()


async def test_one_that_fails_fails_them_all_and_ends_the_others(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    llm.delay = 0.002
    talks = [*TALKS, [{"role": "user", "content": "!fail-after-3"}]]
    response = await client.post(ROUTE, json={"messages": talks, "max_tokens": 300})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "request_failed")
    assert llm.running == set()


async def test_keys_guard_it() -> None:
    async with make_client(build_app(make_context(FakeLLM(), api_key=["secret"]))) as client:
        assert (await client.post(ROUTE, json={"messages": TALKS})).status_code == 401
