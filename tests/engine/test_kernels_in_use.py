"""What a worker says of its kernels at start, and what it refuses."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.errors import ConfigError
from vllm_engine.execution.kernels_in_use import check_kernels
from vllm_kernels import backend
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.cpu import native

pytestmark = pytest.mark.cpu_only

needs_native = pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")


@needs_native
def test_batch_invariance_takes_native_kernels(caplog: pytest.LogCaptureFixture) -> None:
    with use_batch_invariance(True):
        with caplog.at_level(logging.INFO, "vllm_engine"):
            check_kernels({"attention": "cpu"}, torch.device("cpu"))
        assert "results are the same bits in any batch (VLLM_BATCH_INVARIANT=1)" in caplog.messages
        with pytest.raises(ConfigError, match=r"takes the native kernels .* attention by the eager kernels") as caught:
            check_kernels({"attention": "eager", "norm.rms_norm": "cpu"}, torch.device("cpu"))
        assert caught.value.field == "VLLM_BATCH_INVARIANT"
        with (
            backend.use_face("reference"),
            pytest.raises(ConfigError, match=r"takes the native kernels .* reference \(VLLM_KERNELS_FACE=reference\)"),
        ):
            check_kernels({}, torch.device("cpu"))
    check_kernels({"attention": "eager"}, torch.device("cpu"))


@pytest.mark.parametrize("face", ["cpu", "eager"])
def test_kernels_for_a_cpu_are_refused_on_a_gpu(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.face_of("norm", torch.device("cpu"))  # which reads the environment, once for all tests
    monkeypatch.setenv("VLLM_KERNELS_FACE", face)
    with pytest.raises(ConfigError, match=f"VLLM_KERNELS_FACE={face} cannot be honoured: .* for a CPU") as caught:
        check_kernels({}, torch.device("cuda", 0))
    assert caught.value.field == "VLLM_KERNELS_FACE"


@needs_native
def test_the_log_tells_level_threads_and_cores_and_a_level_that_is_not_there_is_refused(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    script = (
        "import logging, sys\n"
        "logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stdout)\n"
        "from pathlib import Path\n"
        "from vllm_engine.config import EngineArgs\n"
        "from vllm_engine.execution.executor import UniExecutor\n"
        "from vllm_engine.errors import ConfigError\n"
        "try:\n"
        "    executor = UniExecutor(EngineArgs(sys.argv[1]).create_config(), Path(sys.argv[1]))\n"
        "    executor.load_model()\n"
        "except ConfigError as error:\n"
        "    print(error.field, error)\n"
    )

    def start(**environment: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        environment["VLLM_TARGET_DEVICE"] = "cpu"
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
        return done.stdout

    first = min(os.sched_getaffinity(0))
    bound = start(VLLM_CPU_OMP_THREADS_BIND=str(first), VLLM_BATCH_INVARIANT="1")
    assert f"kernels: native {native.machine_level()}, 1 thread on core {first}" in bound
    assert "results are the same bits in any batch" in bound
    refused = start(VLLM_KERNELS_CPU_LEVEL="amx")
    if native.machine_level() != "amx":
        assert refused.startswith("VLLM_KERNELS_CPU_LEVEL VLLM_KERNELS_CPU_LEVEL must be one of avx2")
