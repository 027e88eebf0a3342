"""Times on the device."""

from collections.abc import Callable
from typing import Any

import torch

_WARM_MILLISECONDS = 25
_MILLISECONDS = 100


def median_seconds(function: Callable[[], Any]) -> float:
    """Median time of one call by device events; what the device caches is overwritten before each."""
    from triton.testing import do_bench

    milliseconds: float = do_bench(function, warmup=_WARM_MILLISECONDS, rep=_MILLISECONDS, return_mode="median")
    return milliseconds / 1e3


def device_name(device: torch.device) -> str:
    """Name of the device, for the head of a table."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
