"""An engine that sleeps gives memory back, and nobody's answer is another one for that."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.errors import InvalidRequest
from vllm_engine.messages import EngineRequest
from vllm_engine.params import OutputKind, SamplingParams


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    make_tiny_model("gemma3", path)
    return path


def make_core(path: Path) -> EngineCore:
    args = EngineArgs(
        str(path),
        dtype="float32",
        max_model_len=128,
        block_size=4,
        kv_cache_memory_bytes=2**23,
        max_num_seqs=2,
        enable_sleep_mode=True,
    )
    return EngineCore(args.create_config(), path)


def requests() -> list[EngineRequest]:
    prompts = [[(7 * i + 13 * number) % VOCAB_SIZE for i in range(9 + number)] for number in range(3)]
    params = SamplingParams(temperature=1.0, logprobs=1)
    return [EngineRequest(f"r{n}", prompt, params, 20, n, [], [], []) for n, prompt in enumerate(prompts)]


def run(core: EngineCore, found: dict[str, list[int]], steps: int = 10**6) -> dict[str, list[int]]:
    while core.has_unfinished() and steps:
        steps -= 1
        for update in core.step().updates:
            found.setdefault(update.request_id, []).extend(update.new_token_ids)
    return found


@pytest.mark.parametrize("level", [0, 1, 2])
def test_memory_goes_back_and_requests_go_on_with_the_same_tokens(
    model_path: Path, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    core = make_core(model_path)
    core.add(requests())
    alone = run(core, {})
    core.call("reset_prefix_cache", [])
    first, *others = requests()
    core.add([first, *others[:1]])
    found = run(core, {}, steps=6)
    caches = core.executor.worker.runner._kv_caches
    assert any(cache.key.any() for cache in caches)
    for _ in range(2):  # a second time is as once
        core.call("sleep", [level])
    assert core.call("is_sleeping", []) is True
    core.add(others[1:])  # who comes now waits, too
    assert not core.has_unfinished()
    if level:
        assert not any(cache.key.any() or cache.value.any() for cache in caches)
        assert core.scheduler.kv.usage == 0
    assert core.step().updates == []
    core.abort(["r1"])
    core.call("wake_up", [])
    assert core.call("is_sleeping", []) is False
    run(core, found)
    assert found["r0"] == alone["r0"]
    assert found["r2"] == alone["r2"]
    assert found["r1"] == alone["r1"][: len(found["r1"])]
    core.call("check_invariants", [])
    core.close()


@pytest.mark.parametrize("with_running", [False, True])
def test_prefixes_are_forgotten_with_and_without_those_of_running_requests(
    model_path: Path, with_running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    core = make_core(model_path)
    core.add(requests())
    alone = run(core, {})
    core.add(requests()[:1])
    found = run(core, {}, steps=6)
    assert core.scheduler.kv.pool.num_used
    core.call("reset_prefix_cache", [True] if with_running else [])
    assert (core.scheduler.kv.pool.num_used == 0) == with_running
    assert not core.scheduler.kv.pool._cached
    run(core, found)
    assert found["r0"] == alone["r0"]
    core.close()


def test_a_level_or_a_tag_that_is_not_there_is_refused(model_path: Path) -> None:
    core = make_core(model_path)
    with pytest.raises(ValueError, match="level 3"):
        core.call("sleep", [3])
    assert core.call("is_sleeping", []) is False
    core.call("sleep", [1])
    with pytest.raises(ValueError, match="'cache'"):
        core.call("wake_up", [["cache"]])
    assert core.call("is_sleeping", []) is True
    core.close()


async def test_streams_pause_and_go_on(model_path: Path) -> None:
    args = EngineArgs(str(model_path), dtype="float32", max_model_len=128, block_size=4, enable_sleep_mode=True)
    args.kv_cache_memory_bytes, args.skip_tokenizer_init = 2**23, True
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, output_kind=OutputKind.DELTA)
    async with AsyncLLM(args, multiprocess=False) as llm:
        expected = [item async for out in llm.generate([1, 2, 3], params) for item in out.outputs[0].token_ids]
        found: list[int] = []

        async def read() -> None:
            async for output in llm.generate([1, 2, 3], params):
                found.extend(output.outputs[0].token_ids)

        reader = asyncio.create_task(read())
        while len(found) < 5:
            await asyncio.sleep(0.001)
        await llm.sleep()
        assert await llm.is_sleeping()
        await asyncio.sleep(0.05)
        count = len(found)
        await asyncio.sleep(0.1)
        assert len(found) == count < 100
        await llm.wake_up()
        await reader
        assert found == expected
        with pytest.raises(InvalidRequest, match="level"):
            await llm.sleep(3)
        with pytest.raises(InvalidRequest, match="tags"):
            await llm.wake_up(["all"])


async def test_without_the_setting_nobody_sleeps(model_path: Path) -> None:
    args = EngineArgs(str(model_path), dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**22)
    args.skip_tokenizer_init = True
    async with AsyncLLM(args, multiprocess=False) as llm:
        with pytest.raises(InvalidRequest, match="enable_sleep_mode"):
            await llm.sleep()
        assert await llm.is_sleeping() is False
