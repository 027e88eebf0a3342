"""``/v1/completions`` with ``prompt_embeds``: refusals before a scripted engine, answers of a real one."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.server.conftest import Post, make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_engine.messages import EmbedsSpec, PromptEmbeds
from vllm_server.app import build_app

WIDTH = 48


def of_torch(tensor: torch.Tensor) -> str:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def of_numpy(tensor: torch.Tensor) -> str:
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy())
    return base64.b64encode(buffer.getvalue()).decode()


def of_safetensors(tensor: torch.Tensor) -> str:
    return base64.b64encode(save_safetensors({"x": tensor})).decode()


ROWS = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


def enabled(llm: FakeLLM) -> None:
    llm.ready = msgspec.structs.replace(llm.ready, prompt_embeds=EmbedsSpec(WIDTH, "float32"))


@pytest.mark.parametrize("write", [of_torch, of_numpy, of_safetensors])
@pytest.mark.parametrize("prompt", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": []}])
async def test_the_engine_gets_the_rows(complete: Post, llm: FakeLLM, write: Any, prompt: dict[str, Any]) -> None:
    enabled(llm)
    response = await complete(prompt_embeds=write(ROWS), max_tokens=2, return_token_ids=True, **prompt)
    assert response.status_code == 200
    embeds = llm.calls[0].prompt["prompt_embeds"]
    assert embeds == PromptEmbeds(ROWS.numpy().tobytes(), (5, WIDTH), "float32")
    assert "prompt_token_ids" not in response.json()["choices"][0]


async def test_several_are_several_prompts(complete: Post, llm: FakeLLM) -> None:
    enabled(llm)
    texts = [of_torch(ROWS[:2]), of_numpy(ROWS[:3])]
    response = await complete(prompt_embeds=texts, max_tokens=2, n=2)
    assert [choice["text"] for choice in response.json()["choices"]] == ["ab", "bc"] * 2
    assert [call.prompt["prompt_embeds"].shape[0] for call in llm.calls] == [2, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a"}, "prompt"),
        ({"prompt": [5]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_embeds": ["AAAA", 5]}, "prompt_embeds"),
        ({"prompt_embeds": {"x": 1}}, "prompt_embeds"),
        ({"prompt_embeds": "no base64"}, "prompt_embeds"),
        ({"prompt_embeds": ""}, "prompt_embeds"),
        ({"prompt_embeds": [of_torch(ROWS), "AAAA"]}, "prompt_embeds"),
        ({"prompt_embeds": of_torch(ROWS.double())}, "prompt_embeds"),
        ({"prompt_embeds": of_torch(ROWS[:, :-1])}, "prompt_embeds"),
        ({"prompt_embeds": of_torch(ROWS.to_sparse())}, "prompt_embeds"),
        ({"prompt_embeds": ["AAAA"] * 1025}, "prompt_embeds"),
        ({"prompt_embeds": "A" * 10**7}, "prompt_embeds"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    complete: Post, llm: FakeLLM, fields: dict[str, Any], param: str
) -> None:
    enabled(llm)
    response = await complete(**({"prompt_embeds": of_torch(ROWS)} | fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert llm.calls == []


async def test_without_the_setting_they_are_refused_with_the_flag_that_is_missing(complete: Post, llm: FakeLLM) -> None:
    error = (await complete(prompt_embeds=of_torch(ROWS))).json()["error"]
    assert error["param"] == "prompt_embeds"
    assert "--enable-prompt-embeds" in error["message"]
    for absent in (None, []):
        assert (await complete(prompt="a", prompt_embeds=absent, max_tokens=1)).status_code == 200
        assert (await complete(prompt_embeds=absent)).json()["error"]["param"] == "prompt"


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    model = make_tiny_model("qwen3", tmp_path)
    make_tiny_tokenizer(tmp_path)
    args = EngineArgs(
        str(tmp_path),
        served_model_name=["tiny"],
        dtype="float32",
        max_model_len=64,
        kv_cache_memory_bytes=2**22,
        enable_prompt_embeds=True,
    )
    llm = AsyncLLM(args, multiprocess=False)
    async with llm, make_client(build_app(make_context(llm))) as client:  # type: ignore[arg-type]
        yield model, client


async def test_a_real_engine_answers_as_it_does_to_the_tokens(real: tuple[Any, httpx.AsyncClient]) -> None:
    model, client = real

    async def ask(**fields: Any) -> Any:
        body = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **fields}
        response = await client.post("/v1/completions", json=body)
        return response.json()

    token_ids = list(range(40, 60))
    rows = model.get_input_embeddings()(torch.tensor(token_ids)).detach()
    expected = (await ask(prompt=token_ids))["choices"][0]
    for text in (of_torch(rows), of_numpy(rows), of_safetensors(rows)):
        answer = await ask(prompt_embeds=text, logprobs=1)
        choice = answer["choices"][0]
        assert (choice["text"], choice["token_ids"]) == (expected["text"], expected["token_ids"])
        assert len(choice["logprobs"]["tokens"]) == 8
        assert answer["usage"]["prompt_tokens"] == 20
    for wrong in (rows / 0, torch.zeros(64, WIDTH)):
        assert (await ask(prompt_embeds=of_torch(wrong)))["error"]["param"] == "prompt_embeds"
    async with client.stream(
        "POST", "/v1/completions", json={"prompt_embeds": of_torch(rows.bfloat16()), "max_tokens": 3, "stream": True}
    ) as response:
        assert response.status_code == 200
        assert (await response.aread()).rstrip().endswith(b"data: [DONE]")
