"""The tool that measures what batch invariance costs, with the real engine and a model of nothing."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_kernels.cpu import native

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which finds its own folder first, as it does when it is run."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("batch_invariance_cost")


@pytest.mark.cpu_only
@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
def test_the_same_work_is_done_with_and_without(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[str] = []

    class Noted(tool.Driver):  # type: ignore[misc]
        def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
            values.append(environment["VLLM_BATCH_INVARIANT"])
            super().__init__(command, environment, log)

    monkeypatch.setattr(tool, "Driver", Noted)
    shape = tool.Shape(layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=96, vocabulary=600)
    outcome = tool.measure(tmp_path, shape, tool.Work("generate", 2, 8, 3), rounds=2)
    assert len(outcome.ours) == len(outcome.peer) == 2 and min(*outcome.ours, *outcome.peer) > 0
    assert values == ["0", "1"]


def test_a_wrong_word_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options, what in ((["--rounds", "none"], "argument --rounds: invalid"), (["--layers", "0"], "at least 1")):
        command = [sys.executable, str(TOOLS / "batch_invariance_cost.py"), "--folder", str(tmp_path), *options]
        wrong = subprocess.run(command, capture_output=True, text=True, check=False)
        assert wrong.returncode == 2 and what in wrong.stderr
    assert list(tmp_path.iterdir()) == []
