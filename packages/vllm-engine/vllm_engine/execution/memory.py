"""How much main memory there is, and how much of it is in use, also inside of a container."""

from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


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


def main_memory(*, weights: int = 0, cgroup: Path = _CGROUP) -> DeviceMemory:
    """The machine's memory, cut by the limit of the cgroup. ``weights`` is passed on."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    limit, current = read_words(cgroup / "memory.max"), read_words(cgroup / "memory.current")
    if limit and current and limit[0].isdigit() and int(limit[0]) < total:
        total = int(limit[0])
        # What was read of files counts as used, but is given back when the memory is wanted.
        free = min(free, total - int(current[0]) + _unused_file_pages(cgroup))
    return DeviceMemory(total, max(0, min(free, total)), weights)


def _unused_file_pages(cgroup: Path) -> int:
    words = read_words(cgroup / "memory.stat")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    text = pairs.get("inactive_file", "0")
    return int(text) if text.isdigit() else 0


def read_words(path: Path) -> list[str]:
    """The words of a small file of the system; none when it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
