"""An engine that sleeps gives memory back, and nobody's answer is another one for that."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model
from tests.engine.test_residence import MainMemoryGpu
from vllm_engine import LLM
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.messages import EngineRequest
from vllm_engine.params import OutputKind, SamplingParams
from vllm_kernels.backend import use_face
from vllm_kernels.ops.cache import pages as cache_pages


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    make_tiny_model("gemma3", path)
    return path


def holds_nothing(tensors: Iterable[torch.Tensor]) -> bool:
    """On a CPU they are zeros then, on a GPU they have no memory."""
    # Written so that no failure shows them: who has no memory cannot be printed.
    return not [True for tensor in tensors if tensor.untyped_storage().nbytes() and bool(tensor.any())]


def make_core(path: Path, **options: Any) -> EngineCore:
    args = EngineArgs(
        str(path),
        dtype="float32",
        max_model_len=128,
        block_size=4,
        kv_cache_memory_bytes=2**23,
        max_num_seqs=2,
        enable_sleep_mode=True,
        **options,
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


@pytest.mark.parametrize("level", [0, 1, 2, None])
@pytest.mark.parametrize("ahead", [False, True])
def test_memory_goes_back_and_requests_go_on_with_the_same_tokens(
    model_path: Path, level: int | None, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    monkeypatch.setattr(EngineConfig, "schedules_ahead", ahead)
    core = make_core(model_path)
    core.add(requests())
    alone = run(core, {})
    core.call("reset_prefix_cache", [])
    first, *others = requests()
    core.add([first, *others[:1]])
    found = run(core, {}, steps=6)
    caches = core.executor.worker.runner._kv_caches
    assert not any(holds_nothing(cache.tensors()) for cache in caches)
    for _ in range(2):  # a second time is as once
        core.call(*(("release_kv_cache_memory", []) if level is None else ("sleep", [level])))
    assert core.call("is_sleeping", []) is True
    run(core, found)  # of the step that was under way
    core.add(others[1:])  # who comes now waits, too
    assert not core.has_unfinished()
    if level != 0:
        assert all(holds_nothing(cache.tensors()) for cache in caches)
        assert core.scheduler.kv.usage == 0
    in_main_memory = core.executor.worker.runner.device.type == "cpu"
    away = level == 2 or (level == 1 and not in_main_memory)
    assert holds_nothing(core.executor.worker.runner.model.weight_tensors()) == away
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


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("order", [("weights", "kv_cache"), ("kv_cache", "weights")])
def test_requests_go_on_when_both_are_back(model_path: Path, level: int, order: tuple[str, str]) -> None:
    core = make_core(model_path)
    core.add(requests()[:1])
    alone = run(core, {})
    core.add(requests()[:1])
    found = run(core, {}, steps=6)
    core.call("sleep", [level])
    run(core, found)  # of a step that was under way
    for _ in range(2):
        core.call("wake_up", [[order[0]]])
        assert core.step().stats.sleep_level == level
        assert not core.has_unfinished()
    core.call("sleep", [1])  # what is back goes again
    core.call("wake_up", [[order[1]]])
    assert core.is_sleeping
    core.call("wake_up", [[order[0]]])
    assert core.sleep_level is None
    assert run(core, found) == alone
    core.close()


def test_the_cache_alone_goes_and_comes_back(model_path: Path) -> None:
    core = make_core(model_path)
    weights = list(core.executor.worker.runner.model.weight_tensors())
    caches = [tensor for cache in core.executor.worker.runner._kv_caches for tensor in cache.tensors()]
    core.add(requests()[:1])
    alone = run(core, {})
    for then in (["weights"], None):
        core.add(requests()[:1])
        found = run(core, {}, steps=6)
        core.call("release_kv_cache_memory", [])
        run(core, found)  # of a step that was under way
        assert core.step().stats.sleep_level == 0
        assert holds_nothing(caches) and not holds_nothing(weights)
        if then is None:  # it may still sleep deeper, and then the cache is away already
            core.call("sleep", [2])
            core.call("release_kv_cache_memory", [])
            assert core.sleep_level == 2 and holds_nothing(weights)
        else:
            core.call("wake_up", [then])  # they were never away
            assert core.is_sleeping and holds_nothing(caches)
        core.call("wake_up", [["kv_cache"]] if then else [])
        assert not core.is_sleeping
        assert run(core, found) == alone
        assert not holds_nothing(caches)
    core.close()


def test_who_sleeps_can_only_sleep_deeper(model_path: Path) -> None:
    core = make_core(model_path)
    norm = core.executor.worker.runner.model.model.norm.weight
    held = norm.clone()
    for level, deepest in ((0, 0), (1, 1), (0, 1), (2, 2), (1, 2), (0, 2)):
        core.call("sleep", [level])
        assert core.sleep_level == deepest
        assert holds_nothing([norm]) == (deepest > (norm.device.type == "cpu"))
    core.call("wake_up", [[]])  # no tag is all
    assert core.sleep_level is None
    assert torch.equal(norm, held)
    core.call("sleep", [0])
    core.call("wake_up", [["weights"]])  # nothing else is away
    assert core.sleep_level is None
    core.close()


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_weights_that_cannot_be_read_leave_it_asleep(tmp_path: Path, damage: str) -> None:
    make_tiny_model("qwen3", tmp_path)
    core = make_core(tmp_path)
    core.add(requests()[:1])
    alone = run(core, {})
    core.add(requests()[:1])
    found = run(core, {}, steps=6)
    core.call("sleep", [2])
    run(core, found)  # of a step that was under way
    file, aside = tmp_path / "model.safetensors", tmp_path / "aside"
    file.rename(aside)
    if damage == "cut":
        file.write_bytes(aside.read_bytes()[:-1000])
    elif damage == "other":
        tensors = load_file(aside)
        save_file({**tensors, "model.norm.weight": torch.zeros(5)}, file)
    for _ in range(2):
        with pytest.raises(ConfigError, match="safetensors"):
            core.call("wake_up", [])
        assert core.is_sleeping
        assert not core.has_unfinished()
        # None of what was read before the error stays.
        assert holds_nothing(core.executor.worker.runner.model.weight_tensors())
    aside.rename(file)
    core.call("wake_up", [])
    assert run(core, found) == alone
    core.close()


def test_weights_are_read_again_when_told_to(tmp_path: Path) -> None:
    make_tiny_model("qwen3", tmp_path)
    core = make_core(tmp_path)
    core.add(requests()[:1])
    before = run(core, {})
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    last = [name for name in tensors if name.endswith("norm.weight")][-1]
    save_file({**tensors, last: -tensors[last]}, file)
    reload = ["reload_weights", [], {}]
    core.call("collective_rpc", reload)
    core.call("reset_prefix_cache", [])
    core.add(requests()[:1])
    other = run(core, {})
    assert other != before
    save_file(tensors, file)
    core.call("sleep", [2])
    core.call("wake_up", [["weights"]])
    core.call("collective_rpc", reload)
    core.call("wake_up", [["kv_cache"]])
    core.add(requests()[:1])
    assert run(core, {}) == before
    # What fails leaves no weights to compute with.
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is damaged"):
        core.call("collective_rpc", reload)
    core.add(requests()[:1])
    assert [update.finish_reason for update in core.step().updates] == ["error"]
    save_file(tensors, file)
    core.call("collective_rpc", reload)
    core.add(requests()[:1])
    assert run(core, {}) == before
    core.close()


def test_no_step_computes_with_what_is_away(model_path: Path) -> None:
    """Not even where a worker was sent to sleep behind the engine's back."""
    core = make_core(model_path)
    core.call("collective_rpc", ["sleep", [2], {}])
    core.add(requests()[:1])
    assert [update.finish_reason for update in core.step().updates] == ["error"]
    core.call("collective_rpc", ["wake_up", ["weights"], {}])
    core.add(requests()[1:2])
    assert [update.finish_reason for update in core.step().updates] == ["error"]
    core.call("collective_rpc", ["wake_up", ["kv_cache"], {}])
    core.add(requests()[2:])
    assert len(run(core, {})["r2"]) == 20
    core.close()


def make_large_core(path: Path, num_tokens: int, **options: Any) -> tuple[EngineCore, EngineRequest]:
    """An engine with a quarter of a gigabyte of weights, and a request of so many tokens that knows no prefix."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        vocab_size=110_000,
        max_position_embeddings=4096,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    args = EngineArgs(
        str(path),
        load_format="dummy",
        dtype="bfloat16",
        max_model_len=4096,
        enable_sleep_mode=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        **options,
    )
    params = SamplingParams(temperature=0, ignore_eos=True)
    return EngineCore(args.create_config(), path), EngineRequest("r", list(range(num_tokens)), params, 4, 0, [], [], [])


def test_hundreds_of_megabytes_go_back_and_come_again(tmp_path: Path) -> None:
    """Level 1 on a CPU gives the KV cache's back, level 2 that of the weights, too: parameters and projections."""
    core, request = make_large_core(tmp_path, 1500, device="cpu", kv_cache_memory_bytes=2**26)
    model = core.executor.worker.runner.model
    weights, process = model.weight_bytes(), psutil.Process()
    assert weights > 230e6
    core.add([request])
    alone = run(core, {})
    addresses = [tensor.data_ptr() for tensor in model.weight_tensors()]
    cache = 1500 * 2 * 2 * 512 * 2
    for level, least in ((1, cache), (2, weights + cache)):
        full = process.memory_info().rss
        core.call("sleep", [level])
        given_back = full - process.memory_info().rss
        assert least - 2**22 < given_back < least + 2**24
        core.call("wake_up", [])
        core.add([request])
        assert run(core, {}) == alone
        assert abs(process.memory_info().rss - full) < 2**25
    # Graphs know them.
    assert [tensor.data_ptr() for tensor in model.weight_tensors()] == addresses
    core.close()


@pytest.mark.gpu
@pytest.mark.parametrize("level", [1, 2])
def test_a_gpu_gets_nine_tenths_of_weights_and_cache_back(tmp_path: Path, level: int) -> None:
    core, request = make_large_core(tmp_path, 1500, device="cuda", kv_cache_memory_bytes=2**30)
    taken = core.executor.worker.runner.model.weight_bytes() + 2**30
    core.add([request])
    alone = run(core, {})
    free, _ = torch.cuda.mem_get_info()
    for _ in range(2):
        core.call("sleep", [level])
        asleep, _ = torch.cuda.mem_get_info()
        assert asleep - free >= 0.9 * taken
        core.call("wake_up", [["weights"]])
        core.call("wake_up", [["kv_cache"]])
        core.add([request])
        assert run(core, {}) == alone
    awake, _ = torch.cuda.mem_get_info()
    assert abs(awake - free) < 0.1 * taken
    core.close()


@pytest.mark.parametrize("level", [1, 2])
def test_on_a_gpu_all_of_it_goes_back_and_graphs_with_it(
    model_path: Path, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors come back at other addresses, so no graph may outlive a sleep."""
    monkeypatch.setattr(cache_pages, "zeros", lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))
    with use_face("eager"):
        core = make_core(model_path, device="cpu")
        worker, gpu = core.executor.worker, MainMemoryGpu()
        worker._sleep_mode._device = gpu
        tensors = [*worker.runner.model.weight_tensors(), *worker.runner.cache_tensors()]
        gpu.storages = list({tensor.data_ptr(): tensor.untyped_storage() for tensor in tensors}.values())
        full = gpu.num_bytes
        assert full >= worker.runner.model.weight_bytes() + core.limits.layout.num_blocks
        core.add(requests())
        alone = run(core, {})
        core.add(requests())
        found = run(core, {}, steps=6)
        graphs = worker.runner.graphs
        assert graphs is not None
        core.call("sleep", [level])
        assert gpu.num_bytes == 0
        assert worker.runner.graphs is None
        keep = [torch.empty(storage.nbytes() or 64, dtype=torch.uint8) for storage in gpu.storages]
        core.call("wake_up", [["weights"]])
        assert worker.runner.graphs is None
        core.call("wake_up", [["kv_cache"]])
        assert gpu.num_bytes == full
        assert worker.runner.graphs not in (None, graphs)
        assert run(core, found) == alone
        assert keep
        core.close()


def test_an_engine_in_the_call_stack_sleeps(model_path: Path) -> None:
    options = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 2**22, "skip_tokenizer_init": True}
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    with LLM(str(model_path), enable_sleep_mode=True, quantization="int4", **options) as llm:
        before = llm.generate([1, 2, 3], params, use_tqdm=False)[0].outputs[0].token_ids
        for level in (0, 1, 2):
            llm.sleep(level)
            with pytest.raises(InvalidRequest, match="wake_up"):
                llm.generate([1, 2, 3], params, use_tqdm=False)
            if level:
                llm.wake_up(tags=["weights"])
                with pytest.raises(InvalidRequest, match="wake_up"):
                    llm.generate([1, 2, 3], params, use_tqdm=False)
            llm.wake_up()
            assert llm.generate([1, 2, 3], params, use_tqdm=False)[0].outputs[0].token_ids == before
        for level in (3, -1, True, "1"):
            with pytest.raises(InvalidRequest, match="level"):
                llm.sleep(level)  # type: ignore[arg-type]
        for tags in ("weights", ["cache"]):
            with pytest.raises(InvalidRequest, match="tags"):
                llm.wake_up(tags)
    with LLM(str(model_path), **options) as llm, pytest.raises(InvalidRequest, match="enable_sleep_mode"):
        llm.sleep()


def test_an_engine_in_the_call_stack_releases_its_cache(model_path: Path) -> None:
    options = {"dtype": "float32", "max_model_len": 64, "kv_cache_memory_bytes": 2**22, "skip_tokenizer_init": True}
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    with LLM(str(model_path), enable_sleep_mode=True, **options) as llm:
        before = llm.generate([1, 2, 3], params)
        llm.release_kv_cache_memory()
        llm.wake_up(["kv_cache"])
        after = llm.generate([1, 2, 3], params)
        assert [out.outputs[0].token_ids for out in after] == [out.outputs[0].token_ids for out in before]
    with LLM(str(model_path), **options) as llm, pytest.raises(InvalidRequest, match="enable_sleep_mode"):
        llm.release_kv_cache_memory()


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
        with pytest.raises(InvalidRequest, match="enable_sleep_mode"):
            await llm.release_kv_cache_memory()
        assert await llm.is_sleeping() is False
