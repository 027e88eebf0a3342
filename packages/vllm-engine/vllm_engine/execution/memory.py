"""How much memory a device has and what takes it; of main memory, also inside of a container."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_engine.errors import ConfigError
from vllm_engine.execution.cgroup import ROOT, memory_limits
from vllm_engine.execution.cores import Node


class NoRoom(ConfigError):
    """A GPU's memory is too small for the settings. ``solved``: the message names a value that works."""

    def __init__(self, message: str, *, field: str | None = None, solved: bool = False) -> None:
        super().__init__(message, field=field)
        self.solved = solved


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a GPU's memory by what takes them while the largest step is computed, the KV cache left out.

    ``weights``: with all that stays beside them, such as rotary tables. ``activations``: of the largest step, sampling
    included. ``graphs``: of captured graphs. ``non_torch``: CUDA's context, kernels and libraries. ``others``: what
    other processes have.
    """

    weights: int
    activations: int
    graphs: int
    non_torch: int
    others: int

    @property
    def own(self) -> int:
        """Of this engine."""
        return self.weights + self.activations + self.graphs + self.non_torch

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "CUDA graphs": self.graphs,
            "CUDA itself": self.non_torch,
        }
        return " + ".join(f"{name} {amount(num_bytes)}" for name, num_bytes in parts.items())


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's memory: all of it, what can still be taken, and what the model's weights take.

    ``use`` is what steps will take, where that was measured.
    """

    total: int
    free: int
    weights: int = 0
    use: MemoryUse | None = None

    @property
    def used(self) -> int:
        """Bytes that are in use, by whomever."""
        return self.total - self.free


def amount(num_bytes: int) -> str:
    """A number of bytes for people: ``1.25 GiB``, ``12.3 MiB``."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def main_memory(*, weights: int = 0, nodes: list[Node] | None = None, cgroup: Path = ROOT) -> DeviceMemory:
    """The machine's memory, cut by the limits of the cgroups.

    Args:
        weights: passed on.
        nodes: the only ones whose memory is meant, as they are now; None for all.
        cgroup: where the cgroups are mounted.
    """
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    if nodes is not None:
        total, free = min(total, sum(node.total for node in nodes)), min(free, sum(node.free for node in nodes))
    for allowed, left in memory_limits(cgroup):
        total, free = min(total, allowed), min(free, left)
    return DeviceMemory(total, max(0, min(free, total)), weights)
