"""``renderer_num_workers``: how many long prompts are tokenized at once, and what closing does to those that wait."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend.scripted_core import AsyncDouble, ScriptedCore, echo, model_folder
from vllm_engine import AsyncLLM, EngineArgs, SamplingParams
from vllm_engine.async_llm import LONG_TEXT_CHARS
from vllm_engine.errors import EngineDead
from vllm_engine.frontend.renderer_threads import RendererThreads

LONG = "a" * (LONG_TEXT_CHARS + 1)


class Slow:
    """Work that takes a while, and the most of it that ran at once."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds
        self.most = self.running = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, *_: Any) -> list[int]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        return [1, 2, 3]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AsyncLLM]:
    """``engine(**settings)``: an engine, not started, on a core that answers with the prompt."""

    def engine(**settings: Any) -> AsyncLLM:
        core = ScriptedCore(echo, max_model_len=60_000)
        monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: AsyncDouble(core))
        return AsyncLLM(EngineArgs(str(model_folder(tmp_path / "tiny")), **settings))

    return engine


async def finish(llm: AsyncLLM, prompt: str) -> list[int]:
    """The token ids of the prompt, once it is answered."""
    outputs = [output async for output in llm.generate(prompt, SamplingParams(max_tokens=4))]
    return outputs[-1].prompt_token_ids


@pytest.mark.parametrize("workers", [1, 3])
async def test_so_many_long_prompts_are_tokenized_at_once(
    engine: Callable[..., AsyncLLM], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(renderer_num_workers=workers) as llm:
        slow = Slow()
        monkeypatch.setattr(type(llm.tokenizer), "encode", slow)
        results = await asyncio.gather(*(finish(llm, LONG) for _ in range(6)), llm.in_renderer(slow))
    assert results == [[1, 2, 3]] * 7
    assert slow.most == workers
    assert len(slow.threads) == workers
    assert threading.current_thread().name not in slow.threads


async def test_closing_the_engine_ends_those_that_wait_and_the_threads(
    engine: Callable[..., AsyncLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine() as llm:
        slow = Slow(0.2)
        monkeypatch.setattr(type(llm.tokenizer), "encode", slow)
        waiting = [asyncio.create_task(finish(llm, LONG)) for _ in range(4)]
        while not slow.running:
            await asyncio.sleep(0.005)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {EngineDead}
    assert slow.most == 1
    with pytest.raises(EngineDead):
        await llm.in_renderer(slow)
    for thread in threading.enumerate():
        if thread.name in slow.threads:
            thread.join(timeout=5)
            assert not thread.is_alive()


async def test_what_is_cancelled_before_its_turn_is_never_done() -> None:
    threads, slow, done = RendererThreads(1), Slow(0.1), []
    first = asyncio.create_task(threads.run(slow))
    second = asyncio.create_task(threads.run(lambda: done.append(1)))
    await asyncio.sleep(0.02)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await first == [1, 2, 3]
    assert await threads.run(lambda: "later") == "later"
    assert done == []
    threads.close()


async def test_an_error_of_the_work_is_the_callers() -> None:
    threads = RendererThreads(1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    threads.close()
