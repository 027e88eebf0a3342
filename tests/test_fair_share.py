"""The tool that measures a light client beside a flood: what it judges, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "fair_share.py"


@pytest.mark.parametrize(("last", "ratio", "verdict"), [(0.019, "1.90", "met"), (0.021, "2.10", "MISSED")])
def test_the_99th_percentile_of_all_rounds_is_judged(last: float, ratio: str, verdict: str) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tools'); from fair_share import Waits, reached, table\n"
        "alone = Waits('alone', [[0.001] * 49 + [0.01] * 51] * 2, [100.0, 100.0], [10.0, 10.0])\n"
        f"beside = Waits('decode', [[0.002] * 49 + [{last}] * 51] * 2, [500.0, 700.0], [70.0, 90.0])\n"
        "print(*table(alone, [beside], {'decode': 1200.0}), reached(alone, beside), sep='\\n')"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *_, row, met = shown.splitlines()
    assert row.split()[:2] == ["decode", "200"] and row.split()[6:8] == [ratio, verdict]
    assert row.endswith("80  600 tokens/s, 0.50 of 1200")
    assert met == str(verdict == "met")


def test_a_wrong_word_is_refused_at_once() -> None:
    wrong = subprocess.run([sys.executable, str(TOOL), "--flood", "drizzle"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "argument --flood: invalid choice: 'drizzle'" in wrong.stderr
