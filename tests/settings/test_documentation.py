"""``docs/configuration.md`` is what the declared settings make it."""

import subprocess
import sys
from pathlib import Path

from tests.settings.documented import NEWER

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_is_up_to_date() -> None:
    command = [sys.executable, "tools/write_configuration_page.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_counts_what_takes_effect_and_names_every_flag() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| engine |"))
    effect, refused, no_effect, total = (int(cell) for cell in row.split("|")[2:6])
    assert effect + refused + no_effect == total == 194 + len(NEWER)
    assert all(f"`--{name}`" in page for name in ("max-num-seqs", "swap-space", "api-key", "input-file"))
