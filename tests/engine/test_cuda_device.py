"""A worker on a GPU, with a CUDA that only counts bytes: what is measured, what it adds up to, what does not fit."""

import gc
import logging
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from tests.engine.fake_cuda import GIB, MIB, FakeCuda, pretend_gpu, use_fake_cuda
from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.config import EngineArgs
from vllm_engine.config.device import Gpu
from vllm_engine.config.graph_plan import GraphPlan
from vllm_engine.config.model_plan import plan_model
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.core.limits import find_limits
from vllm_engine.errors import ConfigError
from vllm_engine.execution.devices.cuda import LATER, CudaDevice
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.execution.graph_memory import BYTES_PER_LAYER, graph_bytes
from vllm_engine.execution.memory import DeviceMemory, MemoryUse
from vllm_engine.kv_layout import LayerKVSpec
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.backend import use_face
from vllm_kernels.triton.device import interpreted

SPEC = LayerKVSpec(8, 128, "bfloat16")
"""4 KiB a token."""
LAYERS = 32


class CountingExecutor:
    """An executor whose steps only take memory of a fake GPU."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.device = CudaDevice(cuda)
        self.device.prepare()
        cuda.load()

    def memory(self) -> DeviceMemory:
        return self.device.memory(0)

    def profile(self, layout: Any, *, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int) -> Any:
        step = partial(self.cuda.compute, max_num_batched_tokens, max_num_seqs)
        return self.device.profile(0, step, "a step", lambda activations: self.cuda.graphs)


def limits(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, longest: int = 8192, **options: Any) -> Any:
    use_fake_cuda(monkeypatch, cuda)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # of all that the tests have made: slow, and of no use here
    config = EngineArgs("demo", device="cuda", **options).create_config()
    model = LoadedModel(vocab_size=10, max_model_len=longest, kv_specs=[SPEC] * LAYERS)
    return find_limits(config, model, CountingExecutor(cuda))  # type: ignore[arg-type]


def cache_bytes(found: Any) -> int:
    return int(found.layout.num_blocks * 16 * SPEC.bytes_per_token * LAYERS)


@pytest.mark.parametrize("knows_others", [True, False])
def test_every_byte_is_somebodys(knows_others: bool) -> None:
    cuda = FakeCuda(knows_others=knows_others)
    executor = CountingExecutor(cuda)
    found = executor.profile(None, max_num_batched_tokens=8192, max_num_seqs=512, max_model_len=1)
    context = cuda.context if knows_others else 0  # else nobody can tell it from what others have
    assert found.use == MemoryUse(
        weights=16 * GIB,
        activations=8192 * MIB // 4 + 512 * MIB,
        graphs=cuda.graphs,
        non_torch=context + cuda.kernels + LATER,
        others=GIB + cuda.context - context,
    )
    assert (
        found.use.own + found.use.others
        == 16 * GIB + cuda.graphs + 2560 * MIB + cuda.context + cuda.kernels + LATER + GIB
    )
    assert found.free == 80 * GIB - GIB - cuda.context - cuda.kernels - 16 * GIB, "what the step took is given back"


def test_the_cache_gets_what_the_share_leaves_and_the_log_adds_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm_engine"):
        found = limits(FakeCuda(), monkeypatch, gpu_memory_utilization=0.5)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (8192, 512)
    own = 16 * GIB + 256 * MIB + 2560 * MIB + GIB // 2 + 100 * MIB + LATER
    assert 0 <= 40 * GIB - own - cache_bytes(found) < 16 * SPEC.bytes_per_token * LAYERS
    (line,) = [message for message in caplog.messages if message.startswith("memory: ")]
    parts = re.fullmatch(
        r"memory: weights (.*) GiB \+ activations (.*) GiB \+ CUDA graphs (.*) MiB \+ CUDA itself (.*) MiB \+ "
        r"KV cache (.*) GiB = (.*) GiB; gpu_memory_utilization=0.5 allows 40.00 GiB of 80.00 GiB, of which other "
        r"processes have 1.00 GiB",
        line,
    )
    assert parts is not None, line
    weights, activations, graphs, cuda, cache, total = map(float, parts.groups())
    assert weights + activations + (graphs + cuda) / 1024 + cache == pytest.approx(total, abs=0.02)
    assert 39.9 < total <= 40


def test_graphs_take_their_launches_and_one_memory_for_activations() -> None:
    plan = GraphPlan(full=(1, 2, 8), pieces=(1, 2, 8, 16))
    launches = 7 * 5 * BYTES_PER_LAYER
    assert graph_bytes(plan, num_layers=5, activations=800, num_tokens=64) == launches + 200
    assert graph_bytes(plan, num_layers=5, activations=800, num_tokens=4) == launches + 800
    assert graph_bytes(None, num_layers=5, activations=800, num_tokens=64) == 0


def test_other_processes_leave_less_than_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    found = limits(FakeCuda(others=50 * GIB), monkeypatch, gpu_memory_utilization=0.9)
    left = 30 * GIB - 256 * MIB - 16 * GIB - 2560 * MIB - GIB // 2 - 100 * MIB - LATER
    assert 0 <= left - cache_bytes(found) < 16 * SPEC.bytes_per_token * LAYERS


def test_a_share_too_small_names_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no room for the KV cache of one request of 8192 tokens") as caught:
        limits(FakeCuda(), monkeypatch, gpu_memory_utilization=0.2)
    message = str(caught.value)
    assert caught.value.field == "gpu_memory_utilization"
    assert "weights 16.00 GiB + activations 2.50 GiB" in message
    assert "KV cache 1.00 GiB = 20.47 GiB; gpu_memory_utilization=0.2 allows 16.00 GiB of 80.00 GiB" in message
    enough = float(re.findall(r": gpu_memory_utilization=([\d.]+) is enough", message)[0])
    assert enough < 0.3
    limits(FakeCuda(), monkeypatch, gpu_memory_utilization=enough)
    with pytest.raises(ConfigError):
        limits(FakeCuda(), monkeypatch, gpu_memory_utilization=enough - 0.01)


def test_a_request_too_long_names_a_length_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        limits(FakeCuda(), monkeypatch, longest=600_000)
    assert caught.value.field == "max_model_len"
    length = int(re.findall(r"max_model_len=(\d+) is enough", str(caught.value))[0])
    assert limits(FakeCuda(), monkeypatch, longest=length).max_model_len == length
    with pytest.raises(ConfigError):
        limits(FakeCuda(), monkeypatch, longest=length + 16)
    assert limits(FakeCuda(), monkeypatch, longest=600_000, max_model_len="auto").max_model_len == length


FULL = (80 - 1 - 16) * GIB - 256 * MIB - GIB // 2 - 100 * MIB - LATER - 512 * MIB
"""What the fake has for the tokens of a step of 512 requests."""


@pytest.mark.parametrize("per_token", [9 * MIB, FULL // 8192], ids=["no step", "no cache"])
def test_a_step_too_large_names_one_that_works(per_token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"weights 16\.00 GiB \+ activations") as caught:
        limits(FakeCuda(per_token=per_token), monkeypatch, gpu_memory_utilization=1.0)
    assert caught.value.field == "max_num_batched_tokens"
    tokens = int(re.findall(r"max_num_batched_tokens=(\d+) is small enough", str(caught.value))[0])
    assert tokens == 4096
    limits(FakeCuda(per_token=per_token), monkeypatch, max_num_batched_tokens=tokens)


def test_weights_that_leave_nothing_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no smaller step makes room: quantization"):
        limits(FakeCuda(weights=79 * GIB - 600 * MIB), monkeypatch)


def test_weights_that_do_not_fit_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    use_fake_cuda(monkeypatch, FakeCuda(others=70 * GIB))

    def allocate(*arguments: object) -> None:
        raise torch.OutOfMemoryError("of a device that is full")

    monkeypatch.setattr(CausalLM, "allocate", allocate)
    words = r"no room for the weights: 9.50 GiB of 80.00 GiB are free.*other processes have 70.00 GiB"
    with pytest.raises(ConfigError, match=words):
        EngineCore(EngineArgs(str(tmp_path)).create_config(), tmp_path)


@pytest.mark.parametrize("options", [{"kv_cache_memory_bytes": 2 * GIB}, {"num_gpu_blocks_override": 4096}])
def test_a_cache_of_a_given_size_needs_no_profile(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    found = limits(cuda, monkeypatch, longest=1024, **options)
    assert cuda.steps == []
    assert found.layout.num_blocks in (2 * GIB // (16 * SPEC.bytes_per_token * LAYERS), 4096)


@pytest.mark.parametrize(
    ("total", "options", "expected"),
    [
        (80, {}, (8192, 512)),
        (80, {"performance_mode": "throughput"}, (16384, 1024)),
        (80, {"performance_mode": "interactivity"}, (2048, 256)),
        (40, {}, (2048, 256)),
    ],
)
def test_a_step_of_a_large_gpu_takes_more(
    total: int, options: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = limits(FakeCuda(total=total * GIB), monkeypatch, **options)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == expected


@pytest.mark.parametrize(
    ("face", "family", "most"),
    [
        ("eager", "gemma3", {}),
        pytest.param(
            "triton",
            "qwen3",
            {"max_num_batched_tokens": 8, "max_num_seqs": 2},
            marks=pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU"),
        ),
    ],
)
def test_a_worker_profiles_and_answers_as_on_a_cpu(
    face: str, family: str, most: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(family, tmp_path, **({"num_hidden_layers": 1} if face == "triton" else {}))  # interpreted: slow
    options: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "max_model_len": 32,
        "enforce_eager": True,  # a CUDA that counts bytes captures nothing
        **most,
    }
    prompts = [{"prompt_token_ids": list(range(5, 5 + count))} for count in (3, 20)]
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)

    def answers(**more: Any) -> list[list[int]]:
        with LLM(str(tmp_path), **options, **more) as llm:
            outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    on_cpu = answers(device="cpu", kv_cache_memory_bytes=2**24)
    # A cache of few requests at full length is all that is taken of the fake's 80 GiB.
    cuda = FakeCuda(per_token=MIB)
    use_fake_cuda(monkeypatch, cuda)
    with use_face(face):
        assert answers() == on_cpu
    assert cuda.calls[0] == "use"
    largest = (options["max_num_batched_tokens"], options["max_num_seqs"])
    assert cuda.steps[0] == largest, "the largest step comes first"
    assert cuda.calls[-2:] == ["synchronize", "empty_cache"]


def test_what_an_earlier_engine_left_in_torchs_cache_is_not_others() -> None:
    cuda = FakeCuda(knows_others=False)
    cuda.compute(4096, 1)
    assert cuda.reserved() > GIB
    executor = CountingExecutor(cuda)
    use = executor.profile(None, max_num_batched_tokens=8, max_num_seqs=1, max_model_len=1).use
    assert use.others == cuda.others + cuda.context


def test_a_gpu_that_ends_with_an_error_does_not_keep_the_engine_from_ending(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda()
    unused = CudaDevice(cuda)
    unused.shutdown()
    assert cuda.calls == [], "no context is made only to end"
    executor = CountingExecutor(cuda)

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "synchronize", fail)
    executor.device.shutdown()
    assert "the GPU's work ended with an error: CUDA error: an illegal" in caplog.text


def test_the_whole_start_fails_with_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    use_fake_cuda(monkeypatch, FakeCuda(per_token=20 * GIB))
    config = EngineArgs(str(tmp_path), max_num_batched_tokens=8, max_num_seqs=4).create_config()
    with pytest.raises(ConfigError, match=r"no room for a step of 8 tokens in 4 requests.*max_num_batched_tokens=1"):
        EngineCore(config, tmp_path)


@pytest.mark.parametrize(
    ("asked", "checkpoint", "expected"),
    [("auto", "bfloat16", "float16"), ("auto", "float32", "float16"), ("float32", "bfloat16", "float32")],
)
def test_a_gpu_without_bfloat16_takes_another_type(
    asked: str, checkpoint: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model("llama", tmp_path)
    stored: dict[str, Any] = {"hf_overrides": {"dtype": checkpoint}}
    pretend_gpu(monkeypatch, Gpu("Tesla T4", (7, 5), 16 * GIB))
    plan = plan_model(EngineArgs(str(tmp_path), dtype=asked, **stored).create_config(), tmp_path)
    assert plan.dtype == expected
    told = "the checkpoint is bfloat16, which Tesla T4 (sm_75) does not compute in; running in float16"
    assert plan.warnings == ((told,) if asked == "auto" and checkpoint == "bfloat16" else ())
    assert plan_model(EngineArgs(str(tmp_path), device="cpu", **stored).create_config(), tmp_path).dtype == "bfloat16"


@pytest.mark.parametrize(("family", "asked", "instead"), [("llama", "bfloat16", "float16 or"), ("gemma3", "auto", "")])
def test_what_such_a_gpu_cannot_do_is_refused(
    family: str, asked: str, instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(family, tmp_path)
    pretend_gpu(monkeypatch, Gpu("Tesla T4", (7, 5), 16 * GIB))
    words = rf"dtype {asked}: Tesla T4 \(sm_75\) does not compute in bfloat16; use {instead} ?float32"
    with pytest.raises(ConfigError, match=words) as caught:
        plan_model(EngineArgs(str(tmp_path), dtype=asked).create_config(), tmp_path)
    assert caught.value.field == "dtype"


def test_weights_of_fp8_are_refused_where_there_are_no_products_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model("llama", tmp_path)

    def plan(**options: Any) -> None:
        plan_model(EngineArgs(str(tmp_path), quantization="fp8", **options).create_config(), tmp_path)

    for gpu, options, words in (
        (
            Gpu("NVIDIA A100", (8, 0), 80 * GIB),
            {},
            r"NVIDIA A100 \(sm_80\) has no instructions for fp8 e4m3; use int8 or",
        ),
        (
            Gpu("NVIDIA H100", (9, 0), 80 * GIB),
            {"device": "cpu"},
            "a CPU has no products of fp8 numbers; use int8, which",
        ),
    ):
        pretend_gpu(monkeypatch, gpu)
        with pytest.raises(ConfigError, match=f"quantization=fp8: {words}") as caught:
            plan(**options)
        assert caught.value.field == "quantization"
    plan()
    pretend_gpu(monkeypatch, Gpu("NVIDIA L4", (8, 9), 24 * GIB))
    plan()


@pytest.mark.parametrize("asked", ["fp8", "fp8_e4m3", "fp8_per_token_head"])
def test_a_cache_of_e4m3_is_refused_where_the_gpu_has_no_instructions_for_it(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=2)

    def formats(kv_cache_dtype: str, **options: Any) -> tuple[str, ...]:
        arguments = EngineArgs(str(tmp_path), kv_cache_dtype=kv_cache_dtype, **options)
        return plan_model(arguments.create_config(), tmp_path).cache_formats

    pretend_gpu(monkeypatch, Gpu("NVIDIA A100", (8, 0), 80 * GIB))
    words = rf"kv_cache_dtype={asked}: NVIDIA A100 \(sm_80\) has no instructions for fp8 e4m3; use fp8_e5m2 or int8"
    with pytest.raises(ConfigError, match=words) as caught:
        formats(asked)
    assert caught.value.field == "kv_cache_dtype"
    assert formats("fp8_e5m2") == ("fp8_e5m2", "fp8_e5m2")
    assert formats(asked, kv_cache_dtype_skip_layers=["0", "1"]) == ("bfloat16", "bfloat16")
    assert formats(asked, device="cpu")[0].startswith("fp8")
    pretend_gpu(monkeypatch, Gpu("NVIDIA L4", (8, 9), 24 * GIB))
    assert formats(asked)[0].startswith("fp8")


@pytest.mark.parametrize("dump", [True, False])
def test_a_profile_sees_the_gpu_and_tells_its_kernels_times(
    dump: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    use_fake_cuda(monkeypatch, FakeCuda())
    seen: list[Any] = []
    real = torch.profiler.profile

    def profile(*, activities: list[ProfilerActivity], **options: Any) -> Any:
        seen.extend(activities)
        made = real(activities=[ProfilerActivity.CPU], **options)
        made.key_averages = lambda: SimpleNamespace(table=table)
        return made

    def table(**options: Any) -> str:
        seen.append(options["sort_by"])
        return "attention  12.3 ms"

    monkeypatch.setattr(torch.profiler, "profile", profile)
    settings = {"profiler": "torch", "torch_profiler_dir": str(tmp_path), "torch_profiler_dump_cuda_time_total": dump}
    options: dict[str, Any] = {"max_num_seqs": 2, "max_num_batched_tokens": 8, "skip_tokenizer_init": True}
    with LLM(str(tmp_path), profiler_config=settings, **options) as llm, caplog.at_level(logging.INFO, "vllm_engine"):
        llm.start_profile()
        llm.generate([{"prompt_token_ids": [1, 2]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
        llm.stop_profile()
    assert seen == [ProfilerActivity.CPU, ProfilerActivity.CUDA, *(["self_cuda_time_total"] if dump else [])]
    assert ("GPU time by kernel:\nattention  12.3 ms" in caplog.text) == dump
