"""Whoever loads an engine gets sleeping threads, unless they asked for something else."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "5"}, "")],
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
        "print(os.environ.get('OMP_WAIT_POLICY', ''))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
