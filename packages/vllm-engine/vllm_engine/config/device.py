"""Which device there is to run on, found without torch: the process that asks may never need torch."""

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vllm_engine import envs
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

DeviceKind = Literal["cpu", "cuda"]
VARIABLE = "VLLM_TARGET_DEVICE"

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
"""``CUdevice_attribute`` of the driver's interface."""
_NO_DEVICE = 100
"""``CUDA_ERROR_NO_DEVICE``: also where ``CUDA_VISIBLE_DEVICES`` hides them all."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it: ``capability`` such as ``(9, 0)``, ``total`` in bytes, ``bus_id`` its place."""

    name: str
    capability: tuple[int, int]
    total: int
    bus_id: str = ""

    @property
    def has_bfloat16(self) -> bool:
        """Whether it multiplies matrices of bfloat16, as all from Ampere on do."""
        return self.capability >= (8, 0)

    @property
    def has_e4m3(self) -> bool:
        """Whether it converts the 8-bit floats of ``fp8_e4m3``, as all from Ada Lovelace on do."""
        return self.capability >= (8, 9)

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability[0]}{self.capability[1]})"


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that this process may use; none, with the reason in ``why_none``.

    ``are_unusable``: there is a driver, which does not work or not with the installed torch.
    """

    found: tuple[Gpu, ...] = ()
    why_none: str = ""
    are_unusable: bool = False


def resolve_device(asked: str) -> DeviceKind:
    """The device to run on: the setting's, else the environment's, else a GPU where there is one.

    Args:
        asked: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: for ``cuda`` without a GPU that can be used, with the reason.
    """
    field = "device"
    if asked == "auto":
        field, asked = VARIABLE, envs.get(VARIABLE) or "auto"
    if asked == "cpu":
        return "cpu"
    gpus = find_gpus()
    if gpus.found:
        return "cuda"
    if asked == "cuda":
        raise ConfigError(f"{field}=cuda cannot be honoured: {gpus.why_none}", field=field)
    if gpus.are_unusable:
        logger.warning("running on the CPU: %s", gpus.why_none)
    return "cpu"


def first_gpu() -> Gpu | None:
    """The GPU that an engine runs on."""
    found = find_gpus().found
    return found[0] if found else None


@cache
def find_gpus() -> Gpus:
    """The GPUs that torch will see, in its order. Looked for once: the driver reads its environment only then."""
    torch = torch_build()
    if torch is None:
        return Gpus(why_none="torch is not installed")
    version, cuda = torch
    if cuda is None:
        return Gpus(why_none=f"the installed torch ({version}) is built without CUDA")
    return _ask_driver(cuda)


def torch_build() -> tuple[str, str | None] | None:
    """Version of the installed torch and the CUDA version it is built for, read from its files; None without torch."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    text = (Path(spec.submodule_search_locations[0]) / "version.py").read_text(encoding="utf-8")
    return _string(text, "__version__") or "of an unknown version", _string(text, "cuda")


def _string(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _ask_driver(cuda: str) -> Gpus:
    """What the driver's library says to a torch that is built for a version of CUDA.

    It honours ``CUDA_VISIBLE_DEVICES`` and makes no context on any device.
    """
    driver = _driver()
    if driver is None:
        return Gpus(why_none="there is no NVIDIA driver (libcuda cannot be loaded)")
    status = driver.cuInit(0)
    count = ctypes.c_int()
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == _NO_DEVICE or (status == 0 and count.value == 0):
        return Gpus(why_none="the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES may hide them)")
    if status != 0:
        return Gpus(why_none=f"the NVIDIA driver cannot be used (CUDA error {status})", are_unusable=True)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value // 1000 < int(cuda.partition(".")[0]):  # within a major version, all work with all
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Gpus(
            why_none=f"the NVIDIA driver is for CUDA {has} and older, the installed torch for {cuda}", are_unusable=True
        )
    return Gpus(tuple(_describe(driver, number) for number in range(count.value)))


def _driver() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _describe(driver: ctypes.CDLL, number: int) -> Gpu:
    device, major, minor, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name, bus_id = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), total.value, bus_id.value.decode())
