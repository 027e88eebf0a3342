"""What no interpreter shows of the Triton kernels: what a GPU has room for. They are compiled for one, in a process."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SMALLEST = 99 * 1024
"""Bytes of shared memory of a program on GPUs of compute capability 8.6, 8.9 and 12.0."""

_COMPILE = """
import json, sys
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.compilation import compile_for
kernels = {kernel.name: kernel for kernel in KERNELS}
for name, wanted in json.loads(sys.argv[1]):
    fitting = [
        each for each in kernels[name].configurations("sm_80") if {**each.types, **each.constants, **wanted} ==
        {**each.types, **each.constants}
    ]
    print(json.dumps(compile_for(kernels[name], fitting[0], 80).as_dict()))
"""


def compiled(*wanted: tuple[str, dict[str, int]]) -> list[dict[str, int | str | None]]:
    """The first configuration of each kernel that has these constants, compiled for compute capability 8.0."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_largest_tiles_fit_the_shared_memory_of_small_gpus():
    """Those whose sizes no table chooses: many parts of a product with an adapter, say, are loaded at once."""
    adapters = ("lora_expand_kernel", {"BLOCK_M": 64, "MAX_RANK": 32, "PARTS": 8})
    states = ("chunk_scan_kernel", {"HEAD_DIM": 128, "SIZE": 256})
    for found in compiled(adapters, states):
        assert found["error"] is None and found["shared"] <= SMALLEST, found
