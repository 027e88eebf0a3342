"""A core in which something waits for ever is found out, wherever it runs, and the log says where it waits."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine import AsyncLLM, EngineArgs, SamplingParams
from vllm_engine.core.clients import cpu_time, pulse
from vllm_engine.core.scheduler import Scheduler
from vllm_engine.errors import EngineStalled
from vllm_engine.execution.batch import ScheduledBatch


class WaitingScheduler(Scheduler):
    """Waits in a step for as long as a file is there."""

    def schedule(self) -> ScheduledBatch:
        while Path(self.config.additional_config["file"]).exists():
            time.sleep(0.02)
        return super().schedule()


@pytest.fixture(params=[True, False], ids=["process", "thread"])
async def waiting(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AsyncLLM, Path]]:
    monkeypatch.setattr(pulse, "PING_SECONDS", 0.5)
    monkeypatch.setattr(pulse, "STALL_SECONDS", 1.5)
    make_tiny_model("qwen3", tmp_path)
    make_tiny_tokenizer(tmp_path)
    file = tmp_path / "wait"
    args = EngineArgs(
        str(tmp_path),
        dtype="float32",
        max_model_len=128,
        kv_cache_memory_bytes=2**23,
        scheduler_cls="tests.engine.core.test_stall:WaitingScheduler",
        additional_config={"file": str(file)},
    )
    async with AsyncLLM(args, multiprocess=request.param) as llm:
        yield llm, file
        file.unlink(missing_ok=True)


def stalls(llm: AsyncLLM) -> bool:
    try:
        llm.check_progress()
    except EngineStalled:
        return True
    return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_step_that_waits_for_ever_is_found_out(
    waiting: tuple[AsyncLLM, Path], caplog: pytest.LogCaptureFixture
) -> None:
    llm, file = waiting
    await asyncio.sleep(2.5)
    assert not stalls(llm), "an idle engine is well"
    file.touch()
    with caplog.at_level(logging.WARNING):
        answer = asyncio.ensure_future(_text(llm))
        await until(lambda: stalls(llm))
        llm.check_health()  # it may go on yet
        await until(lambda: "stacks" in caplog.text and "in schedule" in caplog.text)
        file.unlink()
        assert await asyncio.wait_for(answer, 10)
        assert not stalls(llm)
        await until(lambda: "makes progress again" in caplog.text)
    assert caplog.text.count("has made no progress") == 1


async def _text(llm: AsyncLLM) -> str:
    return [output async for output in llm.generate("hello", SamplingParams(max_tokens=3))][-1].outputs[0].text


def test_processor_time_is_that_of_the_process_or_thread_asked_for() -> None:
    clock: list[int] = []
    spins = threading.Event()

    def spin() -> None:
        clock.append(time.pthread_getcpuclockid(threading.get_ident()))
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        spins.set()
        time.sleep(0.1)

    thread = threading.Thread(target=spin)
    thread.start()
    assert spins.wait(10)
    assert 0.05 <= (cpu_time.clock_seconds(clock[0]) or 0.0) < 0.1
    thread.join()
    deadline = time.monotonic() + 10
    while cpu_time.clock_seconds(clock[0]) is not None:  # Python's thread ends a moment before the system's
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert cpu_time.process_cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)
    assert cpu_time.process_cpu_seconds(2**22 + 1) is None
