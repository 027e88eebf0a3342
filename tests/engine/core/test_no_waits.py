"""Launching a step never waits for the device: on a GPU each read of a tensor's contents would.

The Triton kernels are not run here: only what the host does around them is looked at.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.execution.launched import Launched
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams
from vllm_kernels.backend import use_face

pytest.importorskip("triton")
pytestmark = pytest.mark.cpu_only  # test_gpu_step_graphs.py asks a GPU itself

ON_A_CPU_ONLY = {("ops/sampling.py", "apply_penalties"), ("ops/linear.py", "rows")}
"""Functions that read contents where they are in main memory, and do not ask on a GPU."""

READS = ("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "nonzero", "numpy", "tolist")

REQUESTS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "penalised": {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.1},
    "adjusted": {"temperature": 0.0, "logit_bias": {3: 2.0}, "allowed_token_ids": [0, 3, 4], "min_tokens": 2},
    "logprobs": {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
}


class Waits:
    """Counts reads of contents while a step is launched, but for those of the step before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        self._launching = False
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self._noting(name, getattr(torch.Tensor, name)))
        wait = Launched.wait

        def allowed(launched: Launched) -> Any:
            with self.launching(False):
                return wait(launched)

        monkeypatch.setattr(Launched, "wait", allowed)

    def _noting(self, name: str, read: Any) -> Any:
        def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._launching:
                code = sys._getframe(1).f_code
                place = code.co_filename.partition("vllm_kernels/")[2] or code.co_filename
                if (place, code.co_name) not in ON_A_CPU_ONLY:
                    self.found.append(f"{name} in {place}, {code.co_name}")
            return read(tensor, *args, **kwargs)

        return noting

    @contextmanager
    def launching(self, now: bool) -> Iterator[None]:
        before, self._launching = self._launching, now
        try:
            yield
        finally:
            self._launching = before


def test_no_tensor_is_read_while_a_step_is_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_kernels.triton.kernel import Kernel  # Triton may be missing

    make_tiny_model("gemma3", tmp_path)  # tied embeddings, two kinds of attention
    monkeypatch.setattr(EngineConfig, "schedules_ahead", True)
    args = EngineArgs(
        str(tmp_path), dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**24, max_num_batched_tokens=16
    )
    with use_face("triton"), monkeypatch.context() as patch:
        patch.setattr(Kernel, "launch", lambda *_, **__: None)
        core = EngineCore(args.create_config(), tmp_path)
        # Kernels that do not run leave their results as they are, so they begin as zeros.
        patch.setattr(torch, "empty", torch.zeros)
        patch.setattr(torch, "empty_like", torch.zeros_like)
        patch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
        waits = Waits(patch)
        launch = core.executor.launch

        def watched(batch: Any) -> Launched:
            with waits.launching(True):
                return launch(batch)

        patch.setattr(core.executor, "launch", watched)
        core.add(
            [
                EngineRequest(name, [7, 8, 9, 10 + index], SamplingParams(**params), 5, index, [2], [], [[4, 5]])
                for index, (name, params) in enumerate(REQUESTS.items())
            ]
        )
        ended = set()
        while core.has_unfinished():
            for update in core.step().updates:
                assert update.error is None
                ended.update([update.request_id] if update.finish_reason else [])
    assert ended == REQUESTS.keys()
    assert set(waits.found) == set()
