"""What the device can do at most, measured: bytes moved and bf16 products."""

from dataclasses import dataclass

import torch

from vllm_kernels.benchmarks.timing import median_seconds

_COPIED = 1 << 30
_SQUARE = 8192


@dataclass(frozen=True)
class Ceilings:
    """Bytes read and written a second by a large copy; operations a second of a large product by torch in bf16."""

    memory: float
    matrix: float


def measure(device: torch.device) -> Ceilings:
    """Both, on a GPU."""
    source = torch.randint(0, 255, (_COPIED,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    memory = 2 * _COPIED / median_seconds(lambda: target.copy_(source))
    left = torch.randn(_SQUARE, _SQUARE, dtype=torch.bfloat16, device=device)
    right = torch.randn(_SQUARE, _SQUARE, dtype=torch.bfloat16, device=device)
    matrix = 2 * _SQUARE**3 / median_seconds(lambda: left @ right)
    return Ceilings(memory, matrix)
