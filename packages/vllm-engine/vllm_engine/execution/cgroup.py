"""What the control groups of this process allow it, for versions 1 and 2 of Linux's cgroups."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs' worth of time that this process may use, by the tightest group that it is in; None for no limit."""
    quotas = []
    for folder in _folders("cpu", root):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limits(root: Path = ROOT) -> Iterator[tuple[int, int]]:
    """Bytes that each group with a limit allows, and bytes that can still be taken of them."""
    for folder in _folders("memory", root):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            # What was read of files counts as used, but is given back when the memory is wanted.
            yield limit, max(0, limit - used + _unused_file_pages(folder))


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """The group of this process and those above it, in each hierarchy that may rule a resource."""
    for line in _text(_OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers
        # A container may not see the path of its host; then the top is the container's own group.
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _unused_file_pages(folder: Path) -> int:
    words = _words(folder / "memory.stat")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    text = pairs.get("total_inactive_file") or pairs.get("inactive_file", "0")
    return int(text) if text.isdigit() else 0


def _number(*files: Path) -> int | None:
    """The number in the first of the files that holds one."""
    for file in files:
        words = _words(file)
        if words and words[0].isdigit():
            return int(words[0])
    return None


def _words(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
