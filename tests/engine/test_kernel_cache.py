"""Compiled kernels of a GPU are kept on disk, and a start says how many it had to compile. No GPU is needed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_engine.execution.kernel_cache import KernelCache, cache_root

pytest.importorskip("triton")

from triton import knobs

START = """
import logging, torch
from vllm_engine.execution.kernel_cache import KernelCache
logging.basicConfig(level=logging.INFO, format="%(message)s")
cache = KernelCache(torch.device("cuda"))
from vllm_kernels.triton.activation import plain
from vllm_kernels.triton.compilation import compile_for
chosen = plain.configurations("sm_90")
for configuration in chosen[:2]:
    compile_for(plain, configuration, 90)
cache.started()
compile_for(plain, chosen[2], 90)
"""


def start(cache_root: Path) -> str:
    """What an engine's process says that compiles two kernels at its start, and one afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["VLLM_CACHE_ROOT"] = str(cache_root)
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    """The effect of VLLM_CACHE_ROOT, too."""
    first = start(tmp_path)
    assert "compiled 2 kernels, 0 from the cache in" in first
    assert "compiled plain_kernel in" in first and "requests waited" in first
    assert (tmp_path / "triton").stat().st_mode & 0o777 == 0o700 and any((tmp_path / "triton").iterdir())
    second = start(tmp_path)
    assert "compiled 0 kernels, 2 from the cache in" in second
    assert "requests waited" not in second


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs.compilation, "listener", None)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # what is set in a test is taken back


def compile_one(cache_hit: bool) -> None:
    """What Triton tells its listener, of versions 3.6 to 3.9."""
    source, times = SimpleNamespace(name="kernel"), SimpleNamespace(total=500_000)
    knobs.compilation.listener(src=source, metadata={}, metadata_group={}, times=times, cache_hit=cache_hit)


@pytest.mark.usefixtures("listener")
def test_triton_s_own_variable_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "ours"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "named"))
    KernelCache(torch.device("cuda")).close()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "named") and not (tmp_path / "ours").exists()


@pytest.mark.usefixtures("listener")
def test_a_folder_that_cannot_be_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file"))
    with caplog.at_level("INFO"):
        cache = KernelCache(torch.device("cuda"))
        compile_one(False)
        compile_one(True)
        cache.started()
        cache.started()
    cache.close()
    assert "Triton's default" in caplog.text and caplog.text.count("compiled 1 kernels, 1 from the cache in 1.0 s") == 1


@pytest.mark.usefixtures("listener")
def test_others_who_listen_still_hear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **told: heard.append(told["cache_hit"]))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    cache = KernelCache(torch.device("cuda"))
    compile_one(True)
    cache.close()
    compile_one(False)
    assert heard == [True, False]


def test_a_cpu_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    cache = KernelCache(torch.device("cpu"))
    with caplog.at_level("INFO"):
        cache.started()
    cache.close()
    assert not any(tmp_path.iterdir()) and "compiled" not in caplog.text


def test_the_root_is_among_the_user_s_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "vllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "vllm"
