"""Where the word on batch invariance comes from. What it does: tests/engine/test_batch_invariance.py."""

import subprocess
import sys
import threading

import pytest

from vllm_kernels.batch_invariance import enabled, use_batch_invariance


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "False"), ("", "False"), ("0", "False"), ("off", "False"), ("1", "True"), (" Yes", "True")],
)
def test_the_environment_is_read_once(text: str | None, said: str) -> None:
    script = (
        "import os\n"
        "from vllm_kernels.batch_invariance import enabled\n"
        "print(enabled())\n"
        "os.environ['VLLM_BATCH_INVARIANT'] = '1'\n"
        "print(enabled())\n"
    )
    environment = {} if text is None else {"VLLM_BATCH_INVARIANT": text}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [said, said]


def test_a_value_that_is_neither_yes_nor_no_is_refused_with_its_name() -> None:
    script = "from vllm_kernels.batch_invariance import enabled; enabled()"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"VLLM_BATCH_INVARIANT": "maybe"}, capture_output=True, text=True
    )
    assert "ValueError: VLLM_BATCH_INVARIANT must be 0 or 1, got 'maybe'" in done.stderr


def test_the_with_block_wins_inside_of_itself_and_in_all_threads() -> None:
    seen = []
    with use_batch_invariance(True):
        with use_batch_invariance(False):
            assert not enabled()
        thread = threading.Thread(target=lambda: seen.append(enabled()))
        thread.start()
        thread.join()
    assert seen == [True]
