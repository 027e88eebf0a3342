"""All tensors of a step are on the model's device, and none of them is read while it is launched.

The device is torch's ``meta``, whose tensors have shapes and hold nothing: what reads one fails. Kernels are not run,
but look where their arguments are, as operators do.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.fake_cuda import pretend_gpu
from tests.engine.models.tiny import make_tiny_model
from tests.kernels import fake_graphs
from tests.kernels.fake_graphs import FakeRecorder
from tests.kernels.one_device import OneDevice
from vllm_engine.config import EngineArgs
from vllm_engine.config.graph_plan import GraphPlan
from vllm_engine.config.model_plan import plan_model
from vllm_engine.core.kv_cache.layout import group_layers
from vllm_engine.execution.batch import NewRequest, ScheduledBatch
from vllm_engine.execution.graph_use import GraphUse
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.execution.step_graphs import StepGraphs
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.loading.loader import load_model
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams
from vllm_kernels import graphs
from vllm_kernels.backend import use_face
from vllm_kernels.transfers import Download

pytest.importorskip("triton")

DEVICE = torch.device("meta")
LONGEST = 64
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "penalised": {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.1},
    "adjusted": {"temperature": 0.0, "logit_bias": {3: 2.0}, "allowed_token_ids": [0, 3, 4], "min_tokens": 2},
    "logprobs": {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
}
PLAN = GraphPlan(full=(1, 2, 4, 8), pieces=(1, 2, 4, 8, 16, 32))


class KindsOfStep(GraphUse):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def count(self, kind: str, num_tokens: int, size: int) -> None:
        self.kinds.append(kind)


@pytest.fixture
def _kernels_look(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_kernels.triton.kernel import Kernel  # Triton may be missing

    def launch(self: Kernel, grid: tuple[int, ...], *arguments: Any, **_: Any) -> None:
        for name, value in zip(self.function.arg_names, arguments, strict=False):
            assert not isinstance(value, torch.Tensor) or value.device == DEVICE, f"{name} of {self.name}"

    monkeypatch.setattr(Kernel, "launch", launch)
    monkeypatch.setattr(fake_graphs, "_launch", launch)
    monkeypatch.setattr(graphs, "recorder_for", lambda device: FakeRecorder())


@pytest.fixture
def _tokens_come_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for holds zeros."""
    wait = Download.wait

    def zeros(download: Download) -> list[torch.Tensor]:
        there = wait(download)
        assert all(tensor.device == DEVICE for tensor in there)
        return [torch.zeros_like(tensor, device="cpu") for tensor in there]

    monkeypatch.setattr(Download, "wait", zeros)


def make_runner(path: Path, **options: Any) -> ModelRunner:
    args = EngineArgs(str(path), dtype="bfloat16", max_model_len=LONGEST, load_format="dummy", **options)
    config = args.create_config()
    plan = plan_model(config, path)
    settings = dataclasses.replace(config.model, max_model_len=LONGEST, dtype=plan.dtype)
    model = load_model(path, plan.decoder, settings, config.load, DEVICE)
    runner = ModelRunner(model, vocab_size=plan.decoder.vocab_size, device=DEVICE, cache_formats=plan.cache_formats)
    layout = KVCacheLayout(50, 16, group_layers(runner.kv_specs(), hybrid=True))
    runner.initialize_kv_cache(layout, max_num_seqs=8, max_model_len=LONGEST)
    return runner


def batch(runner: ModelRunner, counts: dict[str, int], *, new: bool = False) -> ScheduledBatch:
    scheduled = ScheduledBatch(num_scheduled_tokens=counts)
    for number, name in enumerate(counts if new else ()):
        prompt = [7, 8, 9, 10 + number]
        params = SamplingParams(**REQUESTS[name])
        request = EngineRequest(name, prompt, params, 5, number, [2], [], [[4, 5]] if number else [])
        blocks = [[1 + number + 8 * group] for group in range(len(runner.batch.block_tables))]
        scheduled.new_requests.append(NewRequest(request, prompt, blocks, 0, name == "logprobs"))
    return scheduled


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {}),
        ("qwen3", {"quantization": "fp8"}),
        ("gpt2", {}),
        ("llama", {"quantization": "int4", "kv_cache_dtype": "int8_per_token_head"}),
    ],
)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.usefixtures("_kernels_look", "_tokens_come_down")
def test_steps_ahead_are_launched_without_a_tensor_of_main_memory(
    family: str, options: dict[str, Any], captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    make_tiny_model(family, tmp_path, tie_word_embeddings=False)
    use = KindsOfStep()
    with use_face("triton"), OneDevice():
        runner = make_runner(tmp_path, **options)
        if captured:
            tables = runner.batch.block_tables
            runner.graphs = StepGraphs(
                runner.model, PLAN, tables, runner._kv_caches, runner._group_of_layer, LONGEST, use, DEVICE
            )
            while runner.graphs.pending:
                runner.graphs.capture_next()
        counts = dict.fromkeys(REQUESTS, 4)
        first = runner.launch(batch(runner, counts | {"drawn": 2}, new=True))
        second = runner.launch(batch(runner, dict.fromkeys(REQUESTS, 1) | {"drawn": 2}))
        assert first.wait().sampled.keys() == REQUESTS.keys() - {"drawn"}
        third = batch(runner, dict.fromkeys(REQUESTS.keys() - {"greedy"}, 1))
        third.removed.append("greedy")
        launched = runner.launch(third)
        assert second.wait().sampled.keys() == REQUESTS.keys()
        assert launched.wait().sampled.keys() == REQUESTS.keys() - {"greedy"}
    assert use.kinds == (["PIECEWISE", "PIECEWISE", "FULL"] if captured else [])
