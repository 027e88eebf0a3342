"""Steps that are replayed as graphs of a GPU compute what the same steps compute call by call."""

from pathlib import Path

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from tests.engine.step_graphs import Answers, Steps, answers, engine, pretend_graphs, same
from vllm_kernels.triton.device import interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU: test_gpu_step_graphs.py")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return pretend_graphs(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make_tiny_model("llama", folder, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    return folder


@pytest.fixture(scope="module")
def truth(model: Path) -> Answers:
    """Of an engine that knows nothing of graphs."""
    with engine(model, device="cpu", cudagraph_capture_sizes=None, enforce_eager=True) as llm:
        return answers(llm)


@pytest.mark.parametrize("mode", ["FULL_AND_PIECEWISE", "PIECEWISE", "FULL_DECODE_ONLY"])
def test_captured_steps_say_what_the_others_say(model: Path, truth: Answers, steps: Steps, mode: str) -> None:
    with engine(model, compilation_config={"cudagraph_mode": mode}) as llm:
        del steps[:]
        assert same(answers(llm), truth)
    prompts, tokens = "NONE" if mode == "FULL_DECODE_ONLY" else "PIECEWISE", mode.partition("_")[0]
    assert steps == [
        (prompts, 10, 10 if prompts == "NONE" else 16),
        (tokens, 3, 4),
        (tokens, 2, 4),
        (tokens, 1, 1),
    ]


def test_graphs_are_captured_at_start_as_a_phase_of_its_own(
    model: Path, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), engine(model) as llm:
        core = llm._running_client.core
        assert not core.has_idle_work
        assert core.phases["graphs"] > 0
    assert "captured steps: 2 FULL, 3 PIECEWISE in" in caplog.text
    # A megabyte for each graph: one of a whole step, and of two layers in pieces one more than there are layers.
    assert f"which take {(2 + 3 * 3) / 1024:.2f} GiB" in caplog.text


def test_after_readiness_they_are_captured_when_needed_or_one_at_a_time_while_nothing_is_to_do(
    model: Path, truth: Answers, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CUDAGRAPH_CAPTURE_AFTER_READY", "1")
    with engine(model, cudagraph_capture_sizes=[1, 4]) as llm:
        core = llm._running_client.core
        graphs = core.executor.worker.runner.graphs
        assert "graphs" not in core.phases
        assert graphs.count() == {"FULL": 0, "PIECEWISE": 0}
        counts = []
        while core.has_idle_work:
            core.use_idle_time()
            counts.append(sum(graphs.count().values()))
            if len(counts) == 2:
                assert same(answers(llm), truth)  # which needs the small one
        assert counts == [1, 2, 4, 4]  # the small one of whole steps was there already
        assert graphs.count() == {"FULL": 2, "PIECEWISE": 2}


def test_a_capture_after_a_step_leaves_the_cache_alone(
    model: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CUDAGRAPH_CAPTURE_AFTER_READY", "1")
    with engine(model, cudagraph_capture_sizes=[4, 8]) as llm:
        core = llm._running_client.core
        answers(llm)  # of whose steps the last is in the memory that graphs read
        caches = core.executor.worker.runner.cache_tensors()
        before = [tensor.clone() for tensor in caches]
        assert core.has_idle_work
        while core.has_idle_work:
            core.use_idle_time()
        assert all(tensor.any() and torch.equal(tensor, old) for tensor, old in zip(caches, before, strict=True))


def test_what_cannot_be_captured_runs_call_by_call_and_the_log_says_why(
    model: Path, truth: Answers, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    with engine(model, attention_backend="TORCH_SDPA") as llm:
        del steps[:]
        assert same(answers(llm), truth)
    assert {kind for kind, _, _ in steps} == {"PIECEWISE"}
    assert "A FULL graph of size 4 cannot be captured" in caplog.text
    assert "except for sizes none: attention is served by the eager face" in caplog.text


def test_graphs_that_were_dropped_for_a_sleep_are_captured_anew(model: Path, truth: Answers, steps: Steps) -> None:
    with engine(model, cudagraph_capture_sizes=[4]) as llm:
        core = llm._running_client.core
        runner = core.executor.worker.runner
        runner.drop_graphs()
        assert not core.has_idle_work
        assert same(answers(llm), truth)
        runner.make_graphs()
        assert core.has_idle_work
        assert same(answers(llm), truth)
        assert runner.graphs.count() == {"FULL": 1, "PIECEWISE": 0}


def test_the_log_says_how_steps_were_run_where_that_is_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm_engine.execution.graph_use.SECONDS", 0.0)
    for asked in (False, True):
        settings = {"device": "cpu", "cudagraph_capture_sizes": None, "cudagraph_metrics": asked}
        with caplog.at_level("INFO"), engine(model, **settings) as llm:
            answers(llm)
        assert ("graphs of 1 steps" in caplog.text) == asked
