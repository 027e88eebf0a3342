"""The scripts in ``tools``: each starts with the packages as they are now, from wherever it is called."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"time_bench_client"}
"""Called with ``-m``, as they take something from the tests."""
WITHOUT_OPTIONS = {"time_cli"}
TOOLS = sorted({path.stem for path in (ROOT / "tools").glob("*.py")} - WITHOUT_OPTIONS)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_tells_its_options(tool: str, tmp_path: Path) -> None:
    script = ["-m", f"tools.{tool}"] if tool in MODULES else [str(ROOT / "tools" / f"{tool}.py")]
    shown = subprocess.run(
        [sys.executable, *script, "--help"],
        cwd=ROOT if tool in MODULES else tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: ") and f"{tool}.py" in shown.stdout


@pytest.mark.cpu_only
def test_the_parts_of_a_step_are_timed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "profile_step.py"), "--sequences", "2", "--steps", "3"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "engine's own" in shown.stdout
