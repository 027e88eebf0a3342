"""Free memory of a GPU as NVIDIA's management library tells it: without a context, which takes memory itself."""

import ctypes

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_NEARLY = 0.9
"""A part of a GPU (MIG) has the bus id of the whole: then the sizes differ, and the answer is about something else."""


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def free_bytes(bus_id: str, total: int) -> int | None:
    """Bytes that are free on the GPU at ``bus_id``, which CUDA says has ``total``; None where that cannot be asked."""
    library = _library()
    if library is None or library.nvmlInit_v2() != 0:
        return None
    try:
        handle, memory = ctypes.c_void_p(), _Memory()
        if library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(handle)) != 0:
            return None
        if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
            return None
    finally:
        library.nvmlShutdown()
    return int(memory.free) if total >= _NEARLY * memory.total else None


def _library() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
