"""What no interpreter shows of the Triton kernels: what a GPU has room for, and what a compiler makes of them."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SMALLEST = 99 * 1024
"""Bytes of shared memory of a program on GPUs of compute capability 8.6, 8.9 and 12.0."""

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.compilation import source_for

for name, wanted in json.loads(sys.argv[1]):
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    fitting = (each for each in kernel.configurations("sm_80") if wanted.items() <= each.constants.items())
    each = next(fitting)
    options = {"num_warps": each.num_warps, "num_stages": each.num_stages}
    binary = triton.compile(source_for(kernel, each, 80), target=GPUTarget("cuda", 80, 32), options=options)
    print(json.dumps({"shared": binary.metadata.shared, "text": binary.asm["ptx"]}))
"""


def compiled(*wanted: tuple[str, dict[str, int]]) -> list[dict]:
    """The first configuration of each kernel that has these constants: bytes of shared memory, and the text (PTX)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_large_tiles_fit_small_gpus_and_products_that_are_rounded_are_not_fused_with_a_sum():
    """Tiles whose sizes no table chooses: many parts of a product with an adapter, and states of wide heads.

    ``x * (127 / max|x|)`` is rounded to fp32, then to a whole number, so that all kernels round alike.
    """
    adapters = ("lora_expand_kernel", {"BLOCK_M": 64, "MAX_RANK": 32, "PARTS": 8})
    states = ("chunk_scan_kernel", {"HEAD_DIM": 128, "SIZE": 256})
    *large, rounding = compiled(adapters, states, ("round_kernel", {}))
    assert max(each["shared"] for each in large) <= SMALLEST
    assert "0f4B400000" in rounding["text"] and "fma" not in rounding["text"]
