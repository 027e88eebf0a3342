"""The measurement of the engine on a GPU, as far as it goes without one."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which finds its own folder first, as it does when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    return importlib.import_module("gpu_end_to_end")


def test_the_busy_share_is_that_of_the_union(tool: Any) -> None:
    busy_share = tool.busy_share
    assert busy_share([(0, 1), (1, 3), (2, 4)], beginning=0) == 1.0
    assert busy_share([(6, 8), (0, 2), (0, 1), (9, 10)], beginning=0) == pytest.approx(0.5)
    assert busy_share([(0, 1), (2, 4), (5, 8), (6, 7)], beginning=0.25) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="nothing ran on the GPU"):
        busy_share([])


def test_missed_goals_are_told(tool: Any) -> None:
    result = tool.Result("qwen3-0.6b", "a GPU", 256, 0.96, 1000.0, 0.0014, 0.001)
    assert result.missed == [] and "1.40 times the bound of 1.00 ms; goals reached" in tool.shown(result)
    slow = tool.Result("qwen3-0.6b", "a GPU", 256, 0.9, 1000.0, 0.0015, 0.001)
    assert slow.missed == ["busy below 95%", "a step above 1.4 of its bound"]


def test_without_a_gpu_one_line_says_so(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr("sys.argv", ["gpu_end_to_end.py"])
    assert tool.main() == 2
    assert capsys.readouterr().err == "gpu_end_to_end: error: there is no GPU to measure\n"
