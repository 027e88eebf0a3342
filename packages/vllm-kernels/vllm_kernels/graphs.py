"""Kernel graphs: a sequence of kernel calls captured once and replayed without Python, as CUDA graphs are.

A captured call keeps its numbers and addresses. What changes from one replay to the next is the contents of the memory
that it reads, so inputs are written into the same tensors each time.
"""

from collections.abc import Callable, Hashable
from typing import Protocol

import torch

from vllm_kernels import batch_invariance
from vllm_kernels.cpu import graph as cpu
from vllm_kernels.cpu import native
from vllm_kernels.cpu.graph import NotCapturable
from vllm_kernels.cpu.scratch import Scratch

__all__ = ["Graph", "GraphPool", "NotCapturable", "circumstances"]


class Graph(Protocol):
    """What ``GraphPool.capture`` gives."""

    def replay(self) -> None:
        """Make the captured calls again. Raises ``IndexError`` where one finds an index that is out of range."""


class GraphPool:
    """Captures graphs that share the memory of their tensors: a graph's result holds until another one is replayed."""

    def __init__(self, device: torch.device) -> None:
        self.available = device.type == "cpu" and native.why_not() is None
        """Whether there are kernels on this device that can be captured."""
        self._scratch = Scratch()

    def capture(self, function: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
        """Call ``function`` and record its kernels.

        Args:
            function: it may call operations of ``vllm_kernels.ops`` on tensors that stay where they are, view tensors
                and allocate them, nothing else.

        Returns:
            The graph and the function's result, which a replay writes anew.

        Raises:
            NotCapturable: the function does something else, or nothing can be captured here.
        """
        if not self.available:
            raise NotCapturable("there are no native kernels here")
        return cpu.capture(function, self._scratch)


def circumstances() -> Hashable:
    """What a graph is fixed to beside its inputs: it must be captured again when this is another value."""
    return torch.get_num_threads(), batch_invariance.enabled(), native.level()
