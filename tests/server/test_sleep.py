"""Sleep over HTTP, with a real engine behind: what was asked before goes on as if nothing had been."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.server.conftest import make_client, make_context
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_server.app import build_app


async def test_weights_and_cache_come_back_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    make_tiny_model("qwen3", tmp_path)
    make_tiny_tokenizer(tmp_path)
    options = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 2**22, "enable_sleep_mode": True}
    args = EngineArgs(str(tmp_path), **options)
    body = {"prompt": [1, 2, 3], "max_tokens": 200, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    file, aside = tmp_path / "model.safetensors", tmp_path / "aside"
    async with AsyncLLM(args, multiprocess=False) as llm, make_client(build_app(make_context(llm))) as client:  # type: ignore[arg-type]

        async def generate() -> list[int]:
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            tokens: list[int] = response.json()["choices"][0]["token_ids"]
            return tokens

        async def post(path: str) -> int:
            return (await client.post(path)).status_code

        async def sleeps() -> bool:
            return bool((await client.get("/is_sleeping")).json()["is_sleeping"])

        before = await generate()
        assert len(before) == 200
        running = asyncio.create_task(generate())
        await asyncio.sleep(0.02)
        assert await post("/sleep?level=2") == 200
        waiting = asyncio.create_task(generate())
        assert await sleeps()
        assert (await client.get("/readyz")).status_code == 503
        file.rename(aside)
        response = await client.post("/wake_up")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "request_failed")
        assert error["message"].startswith("wake_up failed: ConfigError: ") and "no weight files" in error["message"]
        aside.rename(file)
        assert (await sleeps(), await post("/wake_up?tags=weights"), await sleeps()) == (True, 200, True)
        response = await client.post("/collective_rpc", json={"method": "reload_weights"})
        assert (response.status_code, response.json()) == (200, {"results": [None]})
        response = await client.post("/collective_rpc", json={"method": "no_such"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "method")
        assert not running.done()
        assert (await post("/wake_up?tags=kv_cache"), await sleeps()) == (200, False)
        assert await running == before
        assert await waiting == before
        held = asyncio.create_task(generate())
        assert (await post("/release_kv_cache_memory"), await sleeps(), await post("/wake_up")) == (200, True, 200)
        assert await held == before
        assert (await client.get("/readyz")).status_code == 200
