"""The GPU that kernels run on, or are compiled for."""

import os
from functools import cache

import torch

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}
"""Of the largest GPU of each family (A100, H100, B200): for choices that are made without a GPU at hand."""

FAMILIES = tuple(MULTIPROCESSORS)


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
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if device.type != "cuda":
        return MULTIPROCESSORS["sm_90"]
    return torch.cuda.get_device_properties(device).multi_processor_count
