"""The machine as the kernel and a few tools describe it: system, CPU, memory, GPUs. Works without any of them."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

Facts = dict[str, str]

# What the CPU kernels choose by, in the spelling of /proc/cpuinfo.
_CPU_FLAGS = (
    "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 avx_vnni avx10 "
    "amx_tile amx_int8 amx_bf16 amx_fp16 asimd asimdhp asimddp bf16 i8mm sve sve2 sme"
).split()

_TOOL_SECONDS = 10.0
_GIB = 2**30


def system() -> Facts:
    """Python, the operating system, the compiler."""
    facts = {
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})",
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "compiler": _first_line(["c++", "--version"]) or _first_line(["cc", "--version"]),
    }
    return {name: value for name, value in facts.items() if value}


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def cpu() -> Facts:
    """Kind of CPU, what this process may use of it, and its NUMA nodes."""
    info = _colon_table(Path("/proc/cpuinfo"))
    model = info.get("model name") or _first_line(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    flags = (info.get("flags") or info.get("Features") or "").split()
    facts = {
        "model": model,
        "architecture": platform.machine(),
        "logical cpus": str(os.cpu_count() or ""),
        "threads per core": _threads_per_core(),
        "usable by this process": _affinity(),
        "cgroup cpu limit": _cgroup_cpus(),
        "caches": _caches(),
        "flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        **_numa_nodes(),
    }
    return {name: value for name, value in facts.items() if value}


def _affinity() -> str:
    if not hasattr(os, "sched_getaffinity"):
        return ""
    usable = sorted(os.sched_getaffinity(0))
    return f"{len(usable)} (cpus {_ranges(usable)})"


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as the kernel writes lists of CPUs: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _threads_per_core() -> str:
    siblings = _read(Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list"))
    return str(len(_numbers(siblings))) if siblings else ""


def _numbers(ranges: str) -> list[int]:
    numbers: list[int] = []
    for part in filter(None, ranges.split(",")):
        low, _, high = part.partition("-")
        if not low.isdigit() or (high and not high.isdigit()):
            return []
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def _caches() -> str:
    """Size of each level that the first CPU uses, and how many CPUs share it."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        if level and size and kind != "Instruction":
            sharers = len(_numbers(_read(folder / "shared_cpu_list"))) or 1
            found.append(f"L{level} {size}" + (f" for {sharers} cpus" if sharers > 1 else ""))
    return ", ".join(found)


def _numa_nodes() -> Facts:
    facts = {}
    for folder in sorted(Path("/sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        total = re.search(r"MemTotal:\s*(\d+) kB", _read(folder / "meminfo"))
        memory = _gib_of_kib(f"{total[1]} kB") if total else "no memory"
        facts[f"numa {folder.name.replace('node', 'node ')}"] = f"cpus {_read(folder / 'cpulist') or 'none'}, {memory}"
    return facts


def memory() -> Facts:
    """Main memory and the limit of this process's cgroup."""
    info = _colon_table(Path("/proc/meminfo"))
    facts = {
        "total": _gib_of_kib(info.get("MemTotal")),
        "available": _gib_of_kib(info.get("MemAvailable")),
        "swap": _gib_of_kib(info.get("SwapTotal")),
        "cgroup limit": _cgroup_memory(),
        "transparent huge pages": _chosen(_read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "shared memory": _free_space("/dev/shm"),
    }
    return {name: value for name, value in facts.items() if value}


def _chosen(text: str) -> str:
    """The word in brackets of ``always [madvise] never``."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def _free_space(folder: str) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return ""
    return f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"


def gpu() -> Facts:
    """GPUs, their driver and the CUDA compiler."""
    query = ["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    lines = [line.split(", ", 1) for line in _output(query).splitlines() if ", " in line]
    found = {f"nvidia {index}": facts for index, facts in lines} or {"nvidia": "none found"}
    facts = {
        **found,
        "nvidia driver": _first_line_of(Path("/proc/driver/nvidia/version")),
        "cuda compiler": _last_line(["nvcc", "--version"]),
        "amd driver": _read(Path("/sys/module/amdgpu/version")),
    }
    return {name: value for name, value in facts.items() if value}


def _cgroup_cpus() -> str:
    """The tightest CPU quota of this process's cgroup and those above it, in CPUs; empty when there is none."""
    quotas = []
    for text in _cgroup_values("cpu.max", "cpu"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return f"{min(quotas):g}" if quotas else ""


def _cgroup_memory() -> str:
    limits = [int(text) for text in _cgroup_values("memory.max", "memory") if text.isdigit()]
    # Version 1 writes "no limit" as a number near the largest.
    limits += [
        int(text) for text in _cgroup_values("memory.limit_in_bytes", "memory") if text.isdigit() and int(text) < 2**62
    ]
    return f"{min(limits) / _GIB:.1f} GiB" if limits else ""


def _cgroup_values(file: str, controller: str) -> list[str]:
    """What ``file`` says in this process's cgroup and in every one above it (versions 1 and 2)."""
    values = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        folder = root / path.lstrip("/")
        # In a container the path of the host may not exist; the root then is the container's own cgroup.
        values += [_read(place / file) for place in (folder, *folder.parents) if place.is_relative_to(root)]
    return [value for value in values if value]


def _colon_table(path: Path) -> Facts:
    """The first block of a ``name: value`` file."""
    block = _read(path).split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gib_of_kib(text: str | None) -> str:
    number = (text or "").removesuffix(" kB")
    return f"{int(number) / 2**20:.1f} GiB" if number.isdigit() else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    """What a tool prints; empty when it is not there, fails, or does not end in time."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _last_line(command: list[str]) -> str:
    return _output(command).rpartition("\n")[2]


def _first_line_of(path: Path) -> str:
    return _read(path).partition("\n")[0]


def _first_line(command: list[str]) -> str:
    return _output(command).partition("\n")[0]
