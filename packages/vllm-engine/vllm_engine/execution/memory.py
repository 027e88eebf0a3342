"""How much main memory there is, and how much of it is in use, also inside of a container."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_engine.execution.cgroup import ROOT, memory_limits
from vllm_engine.execution.cores import Node


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's memory: all of it, what can still be taken, and what the model's weights take."""

    total: int
    free: int
    weights: int = 0

    @property
    def used(self) -> int:
        """Bytes that are in use, by whomever."""
        return self.total - self.free


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
