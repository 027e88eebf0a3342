"""Which kernels serve a device, in words: for the log and for reports of bugs."""

import os
from importlib.metadata import version

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.cpu import native


def kernels_of(device: torch.device) -> str:
    """The kernels in use: ``Triton 3.6.0``, or as ``cpu_kernels``. Raises ``ValueError`` as that does."""
    if device.type == "cpu":
        return cpu_kernels()
    face = face_of("norm", device).__name__.split(".")[1]
    return f"Triton {version('triton')}" if face == "triton" else face


def cpu_kernels() -> str:
    """The kernels in use: ``native avx512_bf16``, or which other face and why.

    Raises:
        ValueError: the environment asks for a face or a level that cannot be had; it names the variable.
    """
    face = face_of("norm", torch.device("cpu")).__name__.split(".")[1]
    if face == "cpu":
        return f"native {native_level()}"
    reason = native.why_not() or f"VLLM_KERNELS_FACE={face}"
    return f"{'torch operators' if face == 'eager' else face} ({reason})"


def native_level() -> str:
    """The level in use, and the machine's own where that is higher. Raises ``native.NotAvailable``; ``ValueError``."""
    level, best = native.level(), native.machine_level()
    if level == best:
        return level
    return f"{level} ({native.VARIABLE}; this machine has {best})"


def native_facts() -> dict[str, str]:
    """Name -> value: the library and the level, or why there are none."""
    facts = {"native library": str(native.LIBRARY) if native.LIBRARY.exists() else "not built"}
    try:
        facts["native level"] = native_level()
    except (native.NotAvailable, ValueError) as error:
        facts["native level"] = f"none ({error})"
    forced = os.environ.get(native.VARIABLE)
    if forced:
        facts["native level forced"] = f"{native.VARIABLE}={forced}"
    return facts
