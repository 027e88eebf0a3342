"""Measures single operations of ours and of torch in one process, and what the machine can do at all."""

import time
from collections.abc import Callable
from typing import Any

import torch
from command_loop import serve

from vllm_kernels.ops import linear


class Kernels:
    """The commands. Tensors are made on first use and kept."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def read(self, num_bytes: int, repeats: int) -> dict[str, Any]:
        """Bytes a second at which all cores read memory that no cache holds: the best of the repeats."""
        if self._memory is None or self._memory.nbytes != num_bytes:
            self._memory = torch.ones(num_bytes // 4)
        best = min(_seconds(self._memory.sum) for _ in range(repeats))
        return {"bytes_per_second": self._memory.nbytes / best}

    def multiply(self, rows: int, inner: int, columns: int, repeats: int) -> dict[str, Any]:
        """Median seconds of ``[rows, inner] @ [inner, columns]`` in bf16, ours and torch's, in turn."""
        x = torch.randn(rows, inner).bfloat16()
        plain = torch.randn(columns, inner).bfloat16()
        packed = linear.new_weight(columns, inner, torch.bfloat16)
        linear.fill(packed, plain)
        ours, torchs = [], []
        for repeat in range(repeats + 2):  # the first two warm up
            mine = _seconds(lambda: linear.linear(x, packed))
            others = _seconds(lambda: torch.nn.functional.linear(x, plain))
            if repeat >= 2:
                ours.append(mine)
                torchs.append(others)
        return {"ours": sorted(ours)[repeats // 2], "torch": sorted(torchs)[repeats // 2]}

    def peak(self, size: int, repeats: int) -> dict[str, Any]:
        """FLOP a second of torch at its best: square bf16 matrices, the best of the repeats."""
        a, b = torch.randn(2, size, size).bfloat16()
        best = min(_seconds(lambda: torch.mm(a, b)) for _ in range(repeats))
        return {"flops": 2 * size**3 / best}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    kernels = Kernels()
    serve({"read": kernels.read, "multiply": kernels.multiply, "peak": kernels.peak})
