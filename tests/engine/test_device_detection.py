"""Which device an engine runs on: found without torch, chosen by setting or environment, refused with the reason."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HAS_GPU
from tests.engine.fake_cuda import GIB, pretend_gpu
from tests.simulated_gpu.driver import FakeDriver
from vllm_engine.config import EngineArgs, device
from vllm_engine.config.device import Gpu, Gpus
from vllm_engine.errors import ConfigError
from vllm_engine.execution.devices import nvml

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, "0000:19:00.0")
T4 = Gpu("Tesla T4", (7, 5), 15 * GIB, "0000:3B:00.0")


def found(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None, cuda: str | None = "12.8") -> Gpus:
    monkeypatch.setattr(device, "torch_build", lambda: ("2.12.0", cuda))
    monkeypatch.setattr(device, "_driver", lambda: driver)
    return device.find_gpus.__wrapped__()


def test_the_driver_describes_its_gpus_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, FakeDriver([H100, T4])) == Gpus((H100, T4))


@pytest.mark.parametrize(
    ("driver", "cuda", "reason"),
    [
        (FakeDriver([H100]), None, r"the installed torch \(2\.12\.0\) is built without CUDA"),
        (None, "12.8", "there is no NVIDIA driver"),
        (FakeDriver([]), "12.8", "shows no device .CUDA_VISIBLE_DEVICES may hide them"),
        (FakeDriver([H100], status=100), "12.8", "shows no device"),
        (FakeDriver([H100], status=803), "12.8", "CUDA error 803"),
        (FakeDriver([H100], version=12080), "13.0", "the NVIDIA driver is for CUDA 12.8 and older, .* for 13.0"),
    ],
)
def test_what_is_asked_for_and_not_there_is_refused_with_the_reason(
    driver: FakeDriver | None,
    cuda: str | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpus = found(monkeypatch, driver, cuda)
    assert not gpus.found
    monkeypatch.setattr(device, "find_gpus", lambda: gpus)
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    assert EngineArgs("demo").create_config().device.device == "cpu"
    broken = driver is not None and (driver.status not in (0, 100) or driver.version > 12040)
    assert ("running on the CPU: the NVIDIA driver" in caplog.text) == broken
    with pytest.raises(ConfigError, match=f"^device=cuda cannot be honoured: .*{reason}") as caught:
        EngineArgs("demo", device="cuda").create_config()
    assert caught.value.field == "device"
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cuda")
    with pytest.raises(ConfigError, match=f"^VLLM_TARGET_DEVICE=cuda cannot be honoured: .*{reason}") as caught:
        EngineArgs("demo").create_config()
    assert caught.value.field == "VLLM_TARGET_DEVICE"


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ("auto", None, "cuda"),
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "cuda"),
        ("cpu", None, "cpu"),
        ("cpu", "cuda", "cpu"),
        ("cuda", "cpu", "cuda"),
    ],
)
def test_the_setting_wins_over_the_environment_and_that_over_what_is_there(
    asked: str, environment: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    if environment is not None:
        monkeypatch.setenv("VLLM_TARGET_DEVICE", environment)
    config = EngineArgs("demo", device=asked).create_config()
    assert (config.device.device, config.device.kind) == (expected, expected)


def test_another_device_is_not_known_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="expected cpu or cuda"):
        EngineArgs("demo").create_config()


def ask(code: str, folder: Path, **environment: str) -> str:
    """What a new process prints that must not import torch: the one it finds cannot be."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('torch was imported')\n")
    build = "from typing import Optional\n__version__ = '2.12.0+cu128'\ndebug = False\ncuda: Optional[str] = '12.8'\n"
    (folder / "torch" / "version.py").write_text(build)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    variables.pop("VLLM_TARGET_DEVICE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torch_is_asked_without_importing_it(tmp_path: Path) -> None:
    code = (
        "from vllm_engine.config import EngineArgs\n"
        "from vllm_engine.config.device import find_gpus, torch_build\n"
        "print(torch_build(), EngineArgs('demo').create_config().device.device, find_gpus().why_none)"
    )
    answer = ask(code, tmp_path, CUDA_VISIBLE_DEVICES="")
    reason = "the NVIDIA driver shows no device" if HAS_GPU else "there is no NVIDIA driver"
    assert answer.startswith(f"('2.12.0+cu128', '12.8') cpu {reason}")


@pytest.mark.gpu
def test_this_machines_gpu_is_the_one_that_torch_sees() -> None:
    import torch

    (first, *_) = device.find_gpus().found
    assert first.name == torch.cuda.get_device_name(0)
    assert first.capability == torch.cuda.get_device_capability(0)
    assert first.total == torch.cuda.get_device_properties(0).total_memory
    assert EngineArgs("demo").create_config().device.device == "cuda"


class FakeNvml:
    """NVIDIA's management library on a machine with one GPU. ``failing`` is the call that does not work."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.inits = 0

    def nvmlInit_v2(self) -> int:
        self.inits += 1
        return int(self.failing == "init")

    def nvmlShutdown(self) -> int:
        self.inits -= 1
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus_id: bytes, handle: Any) -> int:
        handle._obj.value = 7
        return int(bus_id != H100.bus_id.encode())

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        assert handle.value == 7
        memory._obj.total, memory._obj.free, memory._obj.used = 82 * GIB, 60 * GIB, 22 * GIB
        return int(self.failing == "memory")


@pytest.mark.parametrize(
    ("failing", "gpu", "expected"),
    [
        ("", H100, 60 * GIB),
        ("", Gpu("MIG 3g.40gb", (9, 0), 40 * GIB, H100.bus_id), None),  # a part: what is free is of the whole
        ("", T4, None),
        ("memory", H100, None),
    ],
)
def test_free_memory_is_asked_for_without_a_context(
    failing: str, gpu: Gpu, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeNvml(failing)
    monkeypatch.setattr(nvml, "_library", lambda: library)
    assert nvml.free_bytes(gpu.bus_id, gpu.total) == expected
    assert library.inits == 0
    monkeypatch.setattr(nvml, "_library", lambda: FakeNvml("init"))
    assert nvml.free_bytes(gpu.bus_id, gpu.total) is None
    monkeypatch.setattr(nvml, "_library", lambda: None)
    assert nvml.free_bytes(gpu.bus_id, gpu.total) is None
