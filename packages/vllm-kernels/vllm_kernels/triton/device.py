"""The GPU that kernels run on, or are compiled for."""

import os
from functools import cache

import torch

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}
"""Of the largest GPU of each family (A100, H100, B200): for choices that are made without a GPU at hand."""

FAMILIES = tuple(MULTIPROCESSORS)

SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Bytes of it that a program may have on the largest GPU of each family: a KiB of what a multiprocessor has is kept."""


def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot serve tensors on ``device``; None when they can."""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    del triton
    if device.type == "cuda" or interpreted():
        return None
    return "Triton kernels run on a GPU, or anywhere with TRITON_INTERPRET=1"


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


@cache
def family_of(device: torch.device) -> str:
    """``sm_80``, ``sm_90`` or ``sm_100``: the newest not newer than the device; ``sm_90`` in the interpreter."""
    if device.type != "cuda":
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    older = [name for name in FAMILIES if int(name[3:]) <= 10 * major + minor]
    return older[-1] if older else FAMILIES[0]


@cache
def has_fp8(device: torch.device) -> bool:
    """Whether there are instructions for e4m3: since sm_89, which counts as ``sm_80`` otherwise."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have. Small GPUs have less of it than the largest of their family."""
    if device.type != "cuda":
        return SHARED_MEMORY["sm_90"]
    from triton.runtime import driver  # it has no driver where there is no GPU

    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


@cache
def multiprocessors(where: torch.device | str) -> int:
    """Streaming multiprocessors of a device, or of the largest of a family."""
    if isinstance(where, str):
        return MULTIPROCESSORS[where]
    if where.type != "cuda":
        return MULTIPROCESSORS["sm_90"]
    return torch.cuda.get_device_properties(where).multi_processor_count
