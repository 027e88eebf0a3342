"""The words for what serves the CPU, in processes of their own: what they depend on is read once."""

import os
import subprocess
import sys

import pytest

from vllm_kernels.cpu import native


def words(script: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", f"from vllm_kernels import describe\nfrom vllm_kernels.cpu import native\n{script}"],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_without_a_library_torch_serves_and_the_reason_is_told() -> None:
    script = (
        "native.LIBRARY = native.LIBRARY.with_name('no.so')\nprint(describe.cpu_kernels(), describe.native_facts())"
    )
    reason = "no.so was not built: that takes an x86-64 processor and a C++ compiler when vllm-kernels is installed"
    facts = {"native library": "not built", "native level": f"none ({reason})"}
    assert words(script) == f"torch operators ({reason}) {facts}"


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
def test_a_forced_level_or_face_is_told() -> None:
    script = "print(describe.cpu_kernels())"
    best = native.machine_level()
    assert words(script) == f"native {best}"
    if best != "avx2":
        told = f"native avx2 (VLLM_KERNELS_CPU_LEVEL; this machine has {best})"
        assert words(script, VLLM_KERNELS_CPU_LEVEL="avx2") == told
    assert words(script, VLLM_KERNELS_FACE="eager") == "torch operators (VLLM_KERNELS_FACE=eager)"
    assert words(script, VLLM_KERNELS_FACE="reference") == "reference (VLLM_KERNELS_FACE=reference)"
