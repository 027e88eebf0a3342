"""Which steps are captured as graphs of a GPU: sizes, kinds and moment, by the settings."""

import logging
from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from vllm_engine.config import EngineArgs
from vllm_engine.config.graph_plan import GraphPlan, default_sizes, plan_graphs, size_for
from vllm_engine.errors import ConfigError
from vllm_engine.execution.graph_use import GraphUse

EVERY_EIGHTH = (1, 2, 4, *range(8, 513, 8))


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)


def plan(max_num_seqs: int = 256, **options: Any) -> GraphPlan | None:
    return plan_graphs(EngineArgs("demo", device="cuda", **options).create_config(), max_num_seqs)


def sizes(max_num_seqs: int = 256, **options: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = plan(max_num_seqs, **options)
    assert found is not None
    return found.full, found.pieces


def test_unless_told_otherwise_every_eighth_size_up_to_twice_the_requests_is_captured() -> None:
    assert sizes() == ((1, 2, 4, *range(8, 257, 8)), EVERY_EIGHTH)
    assert sizes(1000) == (EVERY_EIGHTH, EVERY_EIGHTH)
    assert sizes(5) == ((1, 2, 4, 8), (1, 2, 4, 8))
    assert sizes(1) == ((1,), (1, 2))
    assert default_sizes(0) == ()


def test_sizes_can_be_chosen() -> None:
    assert sizes(cudagraph_capture_sizes=[64, 3, 3, 300]) == ((3, 64, 300), (3, 64, 300))
    assert sizes(max_cudagraph_capture_size=20) == ((1, 2, 4, 8, 16), (1, 2, 4, 8, 16))
    assert sizes(8, cudagraph_capture_sizes=[1, 6, 9, 20]) == ((1, 6, 9), (1, 6, 9, 20))
    assert sizes(8, max_num_batched_tokens=12) == ((1, 2, 4, 8), (1, 2, 4, 8, 16))
    assert plan(cudagraph_capture_sizes=[]) is None
    assert plan(max_cudagraph_capture_size=0) is None
    with pytest.raises(ConfigError, match="cudagraph_capture_sizes must be at least 1 each, got 0"):
        plan(cudagraph_capture_sizes=[0, 1])
    with pytest.raises(ConfigError, match=r"max_cudagraph_capture_size \(8\) must be at least .* \(16\)"):
        plan(cudagraph_capture_sizes=[16], max_cudagraph_capture_size=8)


def test_the_earlier_setting_of_sizes_means_what_it_did() -> None:
    assert sizes(cuda_graph_sizes=[20]) == sizes(max_cudagraph_capture_size=20)
    assert sizes(cuda_graph_sizes=[3, 64]) == sizes(cudagraph_capture_sizes=[3, 64])


def test_the_optimization_level_decides_what_is_captured() -> None:
    assert plan(optimization_level=0) is None
    assert sizes(4, optimization_level=1) == ((), (1, 2, 4, 8))
    for level in (2, 3):
        assert sizes(4, optimization_level=level) == sizes(4) == ((1, 2, 4), (1, 2, 4, 8))


def test_keys_of_compilation_win_over_the_level(caplog: pytest.LogCaptureFixture) -> None:
    def chosen(mode: str) -> GraphPlan | None:
        return plan(2, optimization_level=0, compilation_config={"cudagraph_mode": mode})

    assert chosen("NONE") is None
    assert chosen("PIECEWISE") == GraphPlan((), (1, 2, 4))
    assert chosen("FULL_DECODE_ONLY") == GraphPlan((1, 2), ())
    with caplog.at_level(logging.INFO):
        assert chosen("FULL_AND_PIECEWISE") == chosen("FULL") == GraphPlan((1, 2), (1, 2, 4))
    assert "FULL becomes FULL_AND_PIECEWISE" in caplog.text
    assert plan(2, compilation_config={"cudagraph_num_of_warmups": 3}) == GraphPlan((1, 2), (1, 2, 4), 3)
    assert plan(enforce_eager=True, compilation_config={"cudagraph_mode": "FULL"}) is None


def test_graphs_may_be_captured_after_the_engine_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CUDAGRAPH_CAPTURE_AFTER_READY", "1")
    assert plan(1) == GraphPlan((1,), (1, 2), after_ready=True)


def test_a_step_gets_the_next_size() -> None:
    assert [size_for((1, 4, 8), count) for count in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, None]
    assert size_for((), 1) is None


def test_use_is_told_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    use = GraphUse(True, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for step in [("FULL", 3, 4), ("FULL", 4, 4), ("PIECEWISE", 10, 16), ("NONE", 600, 600)]:
            use.count(*step)
        assert not caplog.records
        now[0] = 10.5
        use.count("FULL", 1, 1)
        use.count("FULL", 1, 1)
        GraphUse(False, clock=lambda: now[0] * 9).count("FULL", 1, 1)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "graphs of 5 steps in 10.5 s: 3 FULL, 1 PIECEWISE, 1 NONE; 618 tokens and 7 of padding; "
        "as size x steps: FULL 4 x 2, FULL 1 x 1, NONE 600 x 1, PIECEWISE 16 x 1"
    )
