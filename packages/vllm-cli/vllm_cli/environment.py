"""What a bug report needs to say, found without importing anything heavy."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from vllm_cli import machine
from vllm_cli.masked_variables import variables

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

_TORCH_SECTIONS = ("torch", "kernels")
_TORCH_SECONDS = 60.0


def collect() -> dict[str, dict[str, str]]:
    """Section -> name -> value, in the order of reading. A fact that cannot be found out is left out."""
    return {
        "system": machine.system(),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "gpu": machine.gpu(),
        "wheels": versions(WHEELS),
        "dependencies": versions(dependencies()),
        **torch_facts(),
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


def dependencies() -> list[str]:
    """The distributions that the installed wheels of ours need, always those of ``DEPENDENCIES`` first."""
    found = list(DEPENDENCIES)
    for wheel in WHEELS:
        try:
            needed = requires(wheel) or []
        except PackageNotFoundError:
            continue
        names = (match[0] for line in needed if (match := re.match(r"[\w.-]+", line)))
        found += [name for name in names if _plain(name) not in map(_plain, (*found, *WHEELS))]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def torch_facts() -> dict[str, dict[str, str]]:
    """The sections ``torch`` and ``kernels``, as a process of its own finds them; else one line that says why not."""
    command = [sys.executable, "-P", "-m", "vllm_cli.torch_facts"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _without_torch(f"importing torch takes more than {_TORCH_SECONDS:g} s")
    except OSError as error:
        return _without_torch(f"the process that imports torch cannot be started ({error})")
    try:
        found: dict[str, dict[str, str]] = json.loads(done.stdout.rpartition("\n")[2])
        return {section: found[section] for section in _TORCH_SECTIONS}
    except (ValueError, KeyError, TypeError):
        return _without_torch(f"the process that imports torch ended with code {done.returncode}")


def _without_torch(reason: str) -> dict[str, dict[str, str]]:
    return {section: {"not available": reason} for section in _TORCH_SECTIONS}
