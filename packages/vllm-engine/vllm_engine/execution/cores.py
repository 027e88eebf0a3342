"""The processor cores that this process may use, by the NUMA node whose memory is near to them."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node. ``cpus`` are its hardware threads that may be used, ``cores`` the lowest-numbered of each core.

    ``total`` and ``free`` are bytes of its memory; what files fill and could give back counts as free.
    """

    number: int
    cpus: tuple[int, ...]
    cores: tuple[int, ...]
    total: int = 0
    free: int = 0


def usable_cpus() -> set[int]:
    """The hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable_nodes(usable: Collection[int], system: Path = SYSTEM) -> list[Node]:
    """The nodes that have some of the ``usable`` hardware threads; one node where the system tells of none.

    Two hardware threads of one core share its vector units: the second one adds nothing to a matrix product.
    """
    cores = [cpu for cpu in sorted(usable) if cpu == min(_siblings(cpu, system) & set(usable), default=cpu)]
    nodes = []
    for folder in (system / "node").glob("node[0-9]*"):
        near = set(numbers(_text(folder / "cpulist")))
        cpus = tuple(cpu for cpu in sorted(usable) if cpu in near)
        if cpus:
            own = tuple(core for core in cores if core in near)
            nodes.append(Node(int(folder.name.removeprefix("node")), cpus, own, *_memory(folder)))
    if sum(len(node.cpus) for node in nodes) != len(usable):
        return [Node(0, tuple(sorted(usable)), tuple(cores))]
    return sorted(nodes, key=lambda node: node.number)


def numbers(text: str) -> list[int]:
    """Numbers from a list as the kernel writes it: ``0-3,8``. Raises ``ValueError`` for anything else."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def ranges(cpus: Collection[int]) -> str:
    """The opposite of ``numbers``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1][1:] = [cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)


def _siblings(cpu: int, system: Path) -> set[int]:
    """The hardware threads of the core that one belongs to."""
    return {cpu, *numbers(_text(system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"))}


def _memory(folder: Path) -> tuple[int, int]:
    kibibytes = {
        name: int(number) for name, number in re.findall(r"Node \d+ (\S+): +(\d+) kB", _text(folder / "meminfo"))
    }
    free = sum(kibibytes.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))
    return kibibytes.get("MemTotal", 0) * 1024, free * 1024


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
