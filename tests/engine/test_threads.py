"""Idle threads soon sleep, unless the user asked for something else, and small models get one thread."""

import os
import subprocess
import sys

import pytest

from vllm_engine.execution.threads import num_threads


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000 unset"), ({"OMP_WAIT_POLICY": "active"}, "unset active"), ({"GOMP_SPINCOUNT": "5"}, "5 unset")],
)
def test_the_wait_policy_is_set_before_torch_is_loaded(environment: dict[str, str], expected: str) -> None:
    script = (
        "import os, sys\n"
        "from vllm_engine.execution.executor import UniExecutor\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n"
        "    UniExecutor(None, None)\n"
        "except AttributeError:\n"
        "    pass\n"
        "assert 'torch' in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT', 'unset'), os.environ.get('OMP_WAIT_POLICY', 'unset'))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("layer_bytes", "cores", "expected"), [(2 * 2**20, 8, 1), (32 * 2**20, 2, 2), (32 * 2**20, 64, 8), (0, 4, 1)]
)
def test_a_thread_needs_enough_weights_to_be_worth_waking(layer_bytes: int, cores: int, expected: int) -> None:
    assert num_threads(layer_bytes, cores) == expected
