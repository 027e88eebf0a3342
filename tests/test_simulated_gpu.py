"""The part of ``make simulated-gpu`` that every run has time for: steps, graphs, copies, sleep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import HAS_GPU

ROOT = Path(__file__).parents[1]
PARTS = (
    "tests/simulated_gpu",
    "tests/engine/test_gpu_step_graphs.py",
    "tests/engine/core/test_ahead.py",
    "tests/engine/core/test_sleep.py::test_memory_goes_back_and_requests_go_on_with_the_same_tokens",
    "tests/engine/core/test_sleep.py::test_requests_go_on_when_both_are_back",
    "tests/engine/test_prompt_embeds.py::test_rows_of_the_table_give_what_their_tokens_give",
    "tests/engine/loading/test_another_device.py",
)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a device of that name of its own")
def test_the_engine_runs_on_a_simulated_gpu() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "tests.simulated_gpu.plugin", "-p", "no:cacheprovider", "-q"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *PARTS], cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
