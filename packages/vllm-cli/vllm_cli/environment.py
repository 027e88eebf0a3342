"""Facts about this machine that a bug report needs, found without importing anything heavy."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WHEELS = ("vllm-kernels", "vllm-engine", "vllm-server", "vllm-cli", "vllm-bench")

DEPENDENCIES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "msgspec",
    "pyzmq",
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "httpx",
)

# What the CPU kernels choose by, in the spelling of /proc/cpuinfo.
_CPU_FLAGS = (
    "avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 avx_vnni amx_tile amx_int8 amx_bf16 "
    "asimd bf16 i8mm sve sve2"
).split()

_VARIABLES = re.compile(
    r"^(VLLM_|OMP_|KMP_|GOMP_|MKL_|OPENBLAS_|TORCH|PYTORCH_|TRITON_|CUDA_|NVIDIA_|NCCL_|HF_|HUGGING|TRANSFORMERS_|"
    r"TOKENIZERS_|OPENAI_|PYTHON|LD_PRELOAD$|LD_LIBRARY_PATH$|(HTTPS?|NO|ALL)_PROXY$)",
    re.IGNORECASE,
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# TOKENIZERS_PARALLELISM and the like hold no token.
_NO_SECRET = re.compile(r"^TOKENIZERS_", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")

_TOOL_SECONDS = 10.0


def collect() -> dict[str, dict[str, str]]:
    """Section -> name -> value, in the order of reading. A fact that cannot be found out is left out."""
    return {
        "system": _system(),
        "cpu": _cpu(),
        "memory": _memory(),
        "gpu": _gpu(),
        "wheels": versions(WHEELS),
        "dependencies": versions(DEPENDENCIES),
        "environment": variables(),
    }


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution, or ``not installed``."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def variables() -> dict[str, str]:
    """The environment variables that change how the program runs; secrets are only said to be set."""
    found = {}
    for name, value in sorted(os.environ.items()):
        if not _VARIABLES.match(name):
            continue
        secret = _SECRET.search(name) and not _NO_SECRET.match(name)
        found[name] = "(set, not shown)" if secret and value else _USER_IN_URL.sub("***", value)
    return found


def _system() -> dict[str, str]:
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


def _cpu() -> dict[str, str]:
    info = _colon_table(Path("/proc/cpuinfo"))
    model = info.get("model name") or _first_line(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    flags = (info.get("flags") or info.get("Features") or "").split()
    facts = {
        "model": model,
        "logical cpus": str(os.cpu_count() or ""),
        "usable by this process": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "",
        "cgroup cpu limit": _cgroup_cpus(),
        "flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
    }
    return {name: value for name, value in facts.items() if value}


def _memory() -> dict[str, str]:
    info = _colon_table(Path("/proc/meminfo"))
    facts = {
        "total": _gib_of_kib(info.get("MemTotal")),
        "available": _gib_of_kib(info.get("MemAvailable")),
        "swap": _gib_of_kib(info.get("SwapTotal")),
        "cgroup limit": _cgroup_memory(),
    }
    return {name: value for name, value in facts.items() if value}


def _gpu() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    lines = [line.split(", ", 1) for line in _output(query).splitlines() if ", " in line]
    return {f"nvidia {index}": facts for index, facts in lines} or {"nvidia": "none found"}


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
    return f"{min(limits) / 2**30:.1f} GiB" if limits else ""


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


def _colon_table(path: Path) -> dict[str, str]:
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


def _first_line(command: list[str]) -> str:
    return _output(command).partition("\n")[0]
