"""Steps that are replayed as graphs of a GPU know addresses: after a sleep they are captured again."""

from pathlib import Path

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_kernels.ops.cache import pages as cache_pages

pytest.importorskip("triton")

from tests.engine.step_graphs import answers, engine, pretend_graphs, same
from vllm_kernels.triton.device import interpreted


@pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU")
def test_graphs_of_a_gpu_are_captured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_pages, "zeros", lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))
    make_tiny_model("llama", tmp_path, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    steps = pretend_graphs(monkeypatch)
    options = {"attention_backend": "TORCH_SDPA", "compilation_config": {"cudagraph_mode": "PIECEWISE"}}  # sooner done
    with engine(tmp_path, cudagraph_capture_sizes=[4], enable_sleep_mode=True, **options) as llm:
        runner = llm._running_client.core.executor.worker.runner
        tensors = [*runner.model.weight_tensors(), *runner.cache_tensors()]
        before, graphs, steps_before = answers(llm), runner.graphs, steps[-4:]
        llm.sleep(1)
        assert not any(tensor.untyped_storage().nbytes() for tensor in tensors)
        assert runner.graphs is None
        llm.wake_up(["weights"])
        assert runner.graphs is None
        llm.wake_up(["kv_cache"])
        assert runner.graphs is not graphs
        assert runner.graphs.count() == {"FULL": 0, "PIECEWISE": 1}
        assert same(answers(llm), before)
        assert steps[-4:] == steps_before
