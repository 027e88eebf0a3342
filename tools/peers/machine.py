"""What the machine is, and how much of it others used during a measurement."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import psutil

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets that matter, memory (bytes) and load."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name", "unknown"),
        "cores": len(usable_cores()),
        "instructions": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
    }


class OthersLoad:
    """Cores that other processes kept busy since it was made, of those that we may use.

    Args:
        pid: of a process; its time and that of its children is not the others'.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = self._own_seconds()

    def cores(self) -> float:
        """Mean number of cores since then."""
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        return max(0.0, others / (time.perf_counter() - self._start))

    def _own_seconds(self) -> float:
        total = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # a child may end meanwhile
                times = process.cpu_times()
                total += times.user + times.system
        return total


def _busy_seconds() -> float:
    times = psutil.cpu_times(percpu=True)
    mine = [times[core] for core in usable_cores() if core < len(times)]
    return sum(core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in mine)
