"""Settings of the engine core, each by what it changes that one can see from outside."""

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.core.limits import resolve_limits
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.execution import worker
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.execution.memory import DeviceMemory
from vllm_engine.kv_layout import LayerKVSpec
from vllm_engine.llm import LLM
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams

HERE = "tests.engine.core.custom_classes:"
MakeCore = Callable[..., EngineCore]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    make_tiny_model("gemma3", path)
    return path


@pytest.fixture
def make_core(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCore:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")

    def make(**options: Any) -> EngineCore:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 128,
            "block_size": 4,
            "kv_cache_memory_bytes": 2**23,
            "max_num_seqs": 4,
        }
        return EngineCore(EngineArgs(str(model_path), **(settings | options)).create_config(), model_path)

    return make


def request(name: str, length: int, max_tokens: int) -> EngineRequest:
    prompt = [(7 * i + 13 * len(name)) % VOCAB_SIZE for i in range(length)]
    return EngineRequest(name, prompt, SamplingParams(temperature=0.0), max_tokens, 1, [], [], [])


def run(core: EngineCore, *requests: EngineRequest) -> tuple[dict[str, list[int]], int]:
    """The tokens of each request, and the most KV blocks that were ever in use."""
    core.add(list(requests))
    found: dict[str, list[int]] = {one.request_id: [] for one in requests}
    most = 0
    while core.has_unfinished():
        for update in core.step().updates:
            assert update.error is None
            found[update.request_id] += update.new_token_ids
        most = max(most, core.scheduler.kv.pool.num_used)
    return found, most


WORK = [request("a", 90, 20), request("bb", 30, 20), request("ccc", 3, 20)]


def test_without_the_hybrid_cache_manager_windows_keep_all_tokens_and_nothing_else_changes(make_core: MakeCore) -> None:
    hybrid = make_core(max_num_batched_tokens=16)
    plain = make_core(max_num_batched_tokens=16, disable_hybrid_kv_cache_manager=True)
    assert len(hybrid.limits.layout.groups) > 1
    assert [group.sliding_window for group in plain.limits.layout.groups] == [None]
    expected, _ = run(hybrid, *WORK)
    assert run(plain, *WORK)[0] == expected
    _, most = run(plain, request("dddd", 100, 20))
    assert most == 30, "every block of 4 of its 119 tokens"
    _, windowed = run(hybrid, request("dddd", 100, 20))
    assert windowed < most * len(hybrid.limits.layout.groups)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_partial_prefills": 3, "max_num_batched_tokens": 16},
        {"max_num_partial_prefills": 2, "long_prefill_token_threshold": 5, "max_num_batched_tokens": 16},
        {"prefix_caching_hash_algo": "xxhash_cbor", "scheduler_reserve_full_isl": False},
        {"performance_mode": "interactivity"},
    ],
    ids=str,
)
def test_no_limit_changes_a_result(make_core: MakeCore, options: dict[str, Any]) -> None:
    expected, _ = run(make_core(), *WORK)
    core = make_core(**options)
    assert run(core, *WORK)[0] == expected
    again = [request("a", 90, 20), request("bb", 30, 20)]
    assert run(core, *again)[0] == {name: expected[name] for name in ("a", "bb")}
    assert core.scheduler.stats().prefix_cache_hits > 0


@pytest.mark.parametrize(
    ("mode", "budget", "seqs"), [("balanced", 2048, 256), ("throughput", 4096, 512), ("interactivity", 512, 256)]
)
def test_the_performance_mode_decides_what_unset_limits_are(mode: str, budget: int, seqs: int) -> None:
    model = LoadedModel(vocab_size=10, max_model_len=1000, kv_specs=[LayerKVSpec(2, 16, "bfloat16")])

    def limits(**options: Any) -> tuple[int, int]:
        config = EngineArgs(performance_mode=mode, **options).create_config()
        found = resolve_limits(config, model, DeviceMemory(total=2**30, free=2**30))
        return found.max_num_batched_tokens, found.max_num_seqs

    assert limits() == (budget, seqs)
    assert limits(max_num_seqs=8, max_num_batched_tokens=77) == (77, 8)
    assert limits(max_num_seqs=9999) == (9999, 9999)
    assert limits(max_num_batched_tokens=100) == (100, 100)


def test_each_step_has_its_line_when_asked_for_and_none_else(
    make_core: MakeCore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vllm_engine.metrics.iteration_log"
    monkeypatch.setattr(logging.getLogger("vllm_engine"), "propagate", True)
    with caplog.at_level(logging.INFO, logger=name):
        run(make_core(), *WORK)
        assert not [record for record in caplog.records if record.name == name]
        core = make_core(enable_logging_iteration_details=True, max_num_batched_tokens=16, max_num_seqs=1)
        run(core, request("first", 20, 2), request("second", 5, 1))
    lines = [record.getMessage() for record in caplog.records if record.name == name]
    assert [re.sub(r"\d+\.\d+ ms", "T", line) for line in lines] == [
        "step 1: 1 prefill requests with 16 tokens, 0 decode requests, 1 waiting, T",
        "step 2: 1 prefill requests with 4 tokens, 0 decode requests, 1 waiting, T",
        "step 3: 0 prefill requests with 0 tokens, 1 decode requests, 1 waiting, T",
        "step 4: 1 prefill requests with 5 tokens, 0 decode requests, 0 waiting, T",
    ]


def test_a_scheduler_of_ones_own_is_used_and_is_told_the_additional_config(make_core: MakeCore) -> None:
    expected, _ = run(make_core(), *WORK)
    core = make_core(scheduler_cls=HERE + "OneAtATime", additional_config={"at_once": 1})
    assert type(core.scheduler).__name__ == "OneAtATime"
    core.add(WORK)
    core.step()
    assert core.scheduler.stats().num_running == 1
    core.abort([one.request_id for one in WORK])
    assert run(core, *WORK)[0] == expected


def test_a_worker_of_ones_own_computes_the_steps(make_core: MakeCore) -> None:
    core = make_core(worker_cls=HERE + "CountingWorker")
    before = core.executor.worker.num_steps  # type: ignore[attr-defined] # the warm-up is made of steps, too
    run(core, request("a", 5, 3))
    assert core.executor.worker.num_steps == before + 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("worker_cls", ["auto", HERE + "CountingWorker"])
def test_the_methods_of_an_extension_can_be_called_between_steps(
    model_path: Path, make_core: MakeCore, worker_cls: str
) -> None:
    options = {"worker_cls": worker_cls, "worker_extension_cls": HERE + "Extension"}
    with LLM(str(model_path), dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**23, **options) as llm:
        (weights,) = llm.collective_rpc("weights_of", ["model.norm.weight"], {"scale": 2})
        reference = llm._running_client.core.executor.worker.runner.model  # type: ignore[union-attr]
        parameter = dict(reference.named_parameters())["model.norm.weight"]
        assert weights == [2 * float(value) for value in parameter.flatten()[:2]]
        with pytest.raises(ArithmeticError, match="as asked"):
            llm.collective_rpc("fail")
        for name in ("_config", "answer", "nothing"):
            with pytest.raises(InvalidRequest, match="no method") as caught:
                llm.collective_rpc(name)
            assert caught.value.field == "method"


async def test_a_call_of_a_worker_is_progress_for_as_long_as_it_takes(model_path: Path) -> None:
    """However long a model's weights take to read again, the server is well meanwhile."""
    args = EngineArgs(
        str(model_path),
        dtype="float32",
        max_model_len=64,
        kv_cache_memory_bytes=2**23,
        worker_extension_cls=HERE + "Extension",
    )
    llm = AsyncLLM(args, multiprocess=False)
    await llm.start()
    try:
        assert llm._watch is not None
        pulse = llm._watch._pulse
        pulse._longest_seconds = 0.5
        call = asyncio.create_task(llm.collective_rpc("rest", [1.8]))
        await asyncio.sleep(1.6)
        assert pulse.silent_seconds >= 0.5
        llm.check_progress()
        assert await call == [None]
        with pytest.raises(InvalidRequest, match="no method 'nothing'") as caught:
            await llm.collective_rpc("nothing")
        assert caught.value.field == "method"
        with pytest.raises(RuntimeError, match="ArithmeticError: as asked"):
            await llm.collective_rpc("fail")
    finally:
        await llm.close()


@pytest.mark.parametrize(
    ("setting", "path", "message"),
    [
        ("scheduler_cls", HERE + "CountingWorker", "derived from"),
        ("scheduler_cls", HERE + "NOT_A_CLASS", "derived from"),
        ("scheduler_cls", HERE + "Nobody", "has no Nobody"),
        ("scheduler_cls", "nowhere.at.all:Class", "there is no module"),
        ("worker_cls", HERE + "OneAtATime", "derived from"),
        ("worker_cls", "Worker", "import path"),
        ("worker_extension_cls", HERE + "Overrides", "defines warm_up"),
        ("worker_extension_cls", HERE + "Shadows", "defines device"),
        ("worker_extension_cls", HERE + "WithInit", "defines __init__"),
        ("worker_extension_cls", HERE + "Final", "cannot be joined"),
        ("worker_extension_cls", HERE + "NOT_A_CLASS", "a class"),
    ],
)
def test_a_class_that_does_not_fit_is_refused_before_weights_are_read(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch, setting: str, path: str, message: str
) -> None:
    def load_model(*_: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(worker, "load_model", load_model)
    with pytest.raises(ConfigError, match=message) as caught:
        make_core(**{setting: path})
    assert caught.value.field == setting
