"""The threads that compute, for those who bind them to cores."""

import ctypes

from vllm_kernels.cpu import native
from vllm_kernels.cpu.native import INT32, POINTER, Kernel

_team_thread_ids = Kernel("team_thread_ids", POINTER, INT32)


def team_thread_ids(threads: int) -> list[int] | None:
    """The system's ids of the OpenMP threads that compute for the calling thread, itself first.

    They stay the same until it computes with more than one, but another number of threads.

    Args:
        threads: how many there are to be.

    Returns:
        At most ``threads`` ids; None without native kernels.
    """
    if native.why_not() is not None:
        return None
    ids = (ctypes.c_int32 * threads)()
    _team_thread_ids.call(ctypes.addressof(ids), threads)
    return [number for number in ids if number]
