"""The native library itself: its levels, its symbols, and what happens where it is not."""

import os
import subprocess
import sys

import pytest

from vllm_kernels.cpu import native


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_this_checkout_has_its_library():
    assert native.why_not() is None
    assert native.machine_levels()[0] == "avx2"


def test_no_symbol_could_be_taken_from_a_higher_level():
    # A weak symbol (an inline function, a template of the standard library) is merged across files by the linker, so
    # that one compiled for AVX-512 could serve the AVX2 kernels and kill the process.
    symbols = subprocess.run(["nm", "-C", str(native.LIBRARY)], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if line[17:18] in "WVu" and "vllm" in line]
    exported = [line.split()[-1] for line in symbols.splitlines() if line[17:18] == "T"]
    assert not weak
    assert sorted(exported) == ["vllm_cpu_kernel", "vllm_cpu_level", "vllm_cpu_replay", "vllm_cpu_use_openmp"]


def test_it_brings_no_openmp_of_its_own():
    needed = subprocess.run(["readelf", "-d", str(native.LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert "omp" not in needed
    assert len(native._loaded_openmp()) == 1


def test_a_level_is_forced_by_the_environment():
    program = "from vllm_kernels.cpu import native; print(native.level())"
    assert run(program, VLLM_KERNELS_CPU_LEVEL="avx2").stdout == "avx2\n"


@pytest.mark.parametrize("name", ["sse2", "AVX2"])
def test_a_level_that_is_not_there_is_refused_with_those_that_are(name):
    program = "import torch\nfrom vllm_kernels.ops.activation import relu\nrelu(torch.ones(2))"
    stderr = run(program, VLLM_KERNELS_CPU_LEVEL=name).stderr
    assert "VLLM_KERNELS_CPU_LEVEL must be one of avx2" in stderr
    assert f"got '{name}'" in stderr


def test_without_a_library_the_eager_face_serves_and_says_so_once():
    program = """
from pathlib import Path
import torch
from vllm_kernels import backend
from vllm_kernels.cpu import native

native.LIBRARY = Path("missing.so")
print(backend.face_of("norm", torch.device("cpu")).__name__, backend.face_of("cache", torch.device("cpu")).__name__)
try:
    with backend.use_face("cpu"):
        print("served")
except ValueError as error:
    print(error)
"""
    done = run(program)
    faces, refusal = done.stdout.splitlines()
    assert faces == "vllm_kernels.eager.norm vllm_kernels.eager.cache"
    assert refusal.startswith("VLLM_KERNELS_FACE=cpu cannot be honoured: missing.so was not built")
    assert done.stderr.count("that takes an x86-64 processor and a C++ compiler") == 1
