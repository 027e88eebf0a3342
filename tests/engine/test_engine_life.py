"""Engines come and go: what one held is given back, and two of them, or their threads, are in nobody's way."""

import asyncio
import threading
from typing import Any

import psutil
import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine import LLM, AsyncLLM, EngineArgs, SamplingParams
from vllm_engine.errors import EngineDead

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("life")
    make_tiny_model("qwen3", path)
    make_tiny_tokenizer(path)
    return {
        "model": str(path),
        "dtype": "float32",
        "max_model_len": 128,
        "kv_cache_memory_bytes": 2**25,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }


def text(llm: LLM) -> str:
    return llm.generate("hello there", GREEDY, use_tqdm=False)[0].outputs[0].text


def held() -> tuple[int, int]:
    """Threads and file descriptors of this process."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds()


@pytest.mark.cpu_only
def test_engines_that_come_and_go_leave_no_threads_files_or_memory(options: dict[str, Any]) -> None:
    before, memory = (0, 0), 0
    for round_ in range(12):
        with LLM(**options) as llm:
            text(llm)
        if round_ == 1:
            before, memory = held(), psutil.Process().memory_info().rss
    threads, files = held()
    assert threads <= before[0] and files <= before[1]
    assert psutil.Process().memory_info().rss < memory * 1.05


@pytest.mark.parametrize("multiprocess", [True, False])
async def test_engines_beside_the_event_loop_leave_nothing_either(options: dict[str, Any], multiprocess: bool) -> None:
    children = len(psutil.Process().children())
    before = (0, 0)
    for round_ in range(3):
        async with AsyncLLM(EngineArgs(**options), multiprocess=multiprocess) as llm:
            async for _ in llm.generate("hello there", GREEDY):
                pass
        if round_ == 0:
            before = held()
    await asyncio.sleep(0.05)
    threads, files = held()
    # Threads of the event loop's pool come one by one up to its size.
    assert threads <= before[0] + 4
    assert files <= before[1]
    assert len(psutil.Process().children()) == children


def test_two_engines_and_other_threads_do_not_mix(options: dict[str, Any]) -> None:
    found: list[str] = []

    def in_a_thread() -> None:
        with LLM(**options) as other:
            found.append(text(other))

    with LLM(**options) as llm:
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        expected = [text(llm) for _ in range(5)]
        thread.join(30)
        assert {*found, *expected} == {text(llm)}
        assert len(found) == 1


def test_an_engine_that_is_closed_in_the_midst_of_a_step_says_so(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(**options)
    scheduler = llm._client.core.scheduler  # type: ignore[union-attr]
    schedule = scheduler.schedule
    monkeypatch.setattr(scheduler, "schedule", lambda: (llm.close(), schedule())[1])
    with pytest.raises(EngineDead, match="closed"):
        text(llm)


def test_an_engine_that_another_thread_closes_says_so(options: dict[str, Any]) -> None:
    llm = LLM(**options)
    timer = threading.Timer(0.1, llm.close)
    timer.start()
    with pytest.raises(EngineDead):
        while True:
            llm.generate(["hello there"] * 8, GREEDY.replace(max_tokens=100), use_tqdm=False)
    timer.join()
    assert llm._outputs.num_requests == 0
