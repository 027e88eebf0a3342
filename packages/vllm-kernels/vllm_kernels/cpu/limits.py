"""What this machine can do at best with the threads of torch, as a benchmark measures it beside what it tests.

The limits of AMX tiles are not among them: those of level ``amx`` are those of ``avx512_bf16``.
"""

import time

import torch

from vllm_kernels.cpu.native import DTYPES, INT32, INT64, POINTER, Kernel

_read = Kernel("limit_read", POINTER, INT64, POINTER, INT32)
_multiply = Kernel("limit_multiply", INT32, INT64, POINTER, INT32)

_ROUNDS = 100_000


def read_seconds(memory: torch.Tensor) -> float:
    """Seconds of reading ``memory`` (contiguous, a multiple of 256 bytes) once."""
    threads = torch.get_num_threads()
    sums = torch.empty(threads, 16)
    start = time.perf_counter()
    _read.call(memory.data_ptr(), memory.nbytes, sums.data_ptr(), threads)
    return time.perf_counter() - start


def multiply_rate(dtype: torch.dtype) -> float:
    """Operations a second of multiplications and additions that only touch registers: fp32, bf16 or fp16 to fp32."""
    threads = torch.get_num_threads()
    sums = torch.empty(threads, 16)
    start = time.perf_counter()
    _multiply.call(DTYPES[dtype], _ROUNDS, sums.data_ptr(), threads)
    seconds = time.perf_counter() - start
    return 2 * 6 * 64 * (4 // dtype.itemsize) * _ROUNDS * threads / seconds
