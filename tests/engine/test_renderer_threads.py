"""``renderer_num_workers``: how many long prompts are tokenized at once, and what closing does to those that wait."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend.scripted_core import AsyncDouble, ScriptedCore, echo, model_folder
from vllm_engine import AsyncLLM, EngineArgs, SamplingParams
from vllm_engine.async_llm import LONG_TEXT_CHARS, TURN_CHARS
from vllm_engine.errors import EngineDead
from vllm_engine.frontend.renderer_threads import HUGE, RendererThreads
from vllm_engine.frontend.turn_share import TurnShare

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


async def test_huge_work_holds_up_its_like_only() -> None:
    threads, slow = RendererThreads(1), Slow(0.1)
    huge = [asyncio.create_task(threads.run(slow, size=HUGE)) for _ in range(3)]
    await asyncio.sleep(0.02)
    assert await threads.run(lambda: "long", size=HUGE - 1) == "long"
    assert not any(task.done() for task in huge)
    await asyncio.gather(*huge)
    assert slow.most == 1
    threads.close()


async def test_many_prompts_at_once_leave_turns_for_all_others(
    engine: Callable[..., AsyncLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, tokenized = 0, Counter[int]()

    async def others() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    def encode(*_: Any) -> list[int]:
        tokenized[turn] += 1
        return [1, 2, 3]

    async with engine() as llm:
        monkeypatch.setattr(type(llm.tokenizer), "encode", encode)
        task = asyncio.create_task(others())
        results = await asyncio.gather(*(finish(llm, "a" * (TURN_CHARS // 4)) for _ in range(100)))
        task.cancel()
    assert results == [[1, 2, 3]] * 100
    assert tokenized.total() == 100 and max(tokenized.values()) <= 4


async def test_who_waits_for_a_turn_comes_in_order_and_may_go_away() -> None:
    share, order = TurnShare(10), []

    async def work(name: str, amount: int) -> None:
        await share.take(amount)
        order.append(name)

    sizes = {"a": 6, "b": 6, "gone": 6, "larger than a turn": 50, "c": 1, "d": 9, "e": 1}
    tasks = {name: asyncio.create_task(work(name, amount)) for name, amount in sizes.items()}
    await asyncio.sleep(0)
    tasks["gone"].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order == [name for name in sizes if name != "gone"]
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.wait_for(share.take(10), 1)  # as before


async def test_work_without_a_size_makes_no_room_for_others() -> None:
    share, turn, done = TurnShare(10), 0, Counter[int]()

    async def work(amount: int) -> None:
        await share.take(amount)
        done[turn] += amount

    tasks = [asyncio.create_task(work(amount)) for amount in [0] * 5 + [10] * 20]
    while not all(task.done() for task in tasks):
        turn += 1
        await asyncio.sleep(0)
    assert done.total() == 200 and max(done.values()) == 10


async def test_an_error_of_the_work_is_the_callers() -> None:
    threads = RendererThreads(1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    threads.close()
