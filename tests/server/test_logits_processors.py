"""``vllm_xargs`` and ``--logprobs-mode`` over HTTP, on the built-in model with logits processors of a user's own."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.engine.sampling.custom_processors import Break, Steer
from tests.server.conftest import Post, make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine import AsyncLLM, EngineArgs
from vllm_server.answers.logprobs import FLOOR
from vllm_server.app import build_app


@pytest.fixture
async def served() -> AsyncIterator[httpx.AsyncClient]:
    args = EngineArgs(
        "demo",
        logits_processors=[Steer, Break],
        logprobs_mode="processed_logprobs",
        num_gpu_blocks_override=64,
        max_model_len=256,
    )
    async with (
        AsyncLLM(args, multiprocess=False) as llm,
        make_client(build_app(make_context(llm))) as client,  # type: ignore[arg-type]
    ):
        yield client


async def test_vllm_xargs_reach_the_processors_and_failures_stay_with_their_requests(served: httpx.AsyncClient) -> None:
    async def ask(**fields: Any) -> tuple[int, dict[str, Any]]:
        response = await served.post(
            "/v1/completions",
            json={"model": "demo", "prompt": [65], "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields},
        )
        return response.status_code, response.json()

    status, plain = await ask(return_token_ids=True)
    assert status == 200
    status, steered = await ask(return_token_ids=True, vllm_xargs={"steer": 500})
    assert (status, steered["choices"][0]["token_ids"][0]) == (200, 65)
    assert steered["choices"][0]["token_ids"] != plain["choices"][0]["token_ids"]

    for wrong in ({"steer": "x"}, {"steer": [1]}, {"a": 2**64}, 5, {"a": "x" * 70000}):
        status, answer = await ask(vllm_xargs=wrong)
        assert (status, answer["error"]["param"]) == (400, "vllm_xargs"), wrong
    status, answer = await ask(vllm_xargs={"break": "raise"})
    assert status == 500
    assert answer["error"]["message"] == "logits processor Break failed (RuntimeError)"
    status, again = await ask(return_token_ids=True)
    assert (status, again["choices"]) == (200, plain["choices"])


async def test_tokens_that_cannot_be_drawn_have_the_floor_as_logprob(served: httpx.AsyncClient) -> None:
    fields = {"model": "demo", "max_tokens": 2, "temperature": 1.0, "top_k": 1, "ignore_eos": True}
    response = await served.post("/v1/completions", json={"prompt": "Hello", "logprobs": 3, **fields})
    logprobs = response.json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [0.0, 0.0]
    assert all(sorted(top.values()) == [FLOOR, FLOOR, 0.0] for top in logprobs["top_logprobs"])
    chat = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 3, **fields}
    response = await served.post("/v1/chat/completions", json=chat)
    for token in response.json()["choices"][0]["logprobs"]["content"]:
        assert [top["logprob"] for top in token["top_logprobs"]] == [0.0, FLOOR, FLOOR]


async def test_vllm_xargs_become_extra_args(complete: Post, chat: Post, llm: FakeLLM) -> None:
    given = {"a": [1, None, {"b": "ü"}], "c": 0.5}
    assert (await complete(prompt="x", max_tokens=1, vllm_xargs=given)).status_code == 200
    assert (await chat(max_tokens=1, vllm_xargs=given)).status_code == 200
    assert [call.params.extra_args for call in llm.calls] == [given, given]
    for answer in (await complete(prompt="x", vllm_xargs="x"), await chat(vllm_xargs=[1])):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "vllm_xargs")
