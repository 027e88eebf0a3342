"""``torch.cuda`` for the GPU of ``device.cpp``: what the five wheels and their tests ask of it, and no more."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.simulated_gpu.facts import CAPABILITY, MULTIPROCESSORS, NAME, SHARED_MEMORY, TOTAL

_library: ctypes.CDLL


def install(library: Path) -> None:
    """Give this process's torch a GPU. Before anything asks whether there is one."""
    global _library
    torch.ops.load_library(str(library))
    _library = ctypes.CDLL(str(library))
    _library.sim_message.restype = ctypes.c_char_p
    for name in (
        "position",
        "total",
        "free",
        "reserved",
        "peak",
        "num_ooms",
        "allocated",
        "new_pool",
        "capture_begin",
    ):
        getattr(_library, f"sim_{name}").restype = ctypes.c_int64
    _library.sim_num_calls.restype = ctypes.c_int64
    _library.sim_set_total(ctypes.c_int64(TOTAL))
    for name, value in _of_torch_cuda().items():
        setattr(torch.cuda, name, value)
    for name, value in _of_torch_c().items():
        setattr(torch._C, name, value)
    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda device="cuda": torch.get_rng_state()
        module.set_rng_state = _nothing()
    torch.UntypedStorage.resize_ = _resize  # type: ignore[method-assign]
    torch.as_tensor = _as_tensor


_resize_on_cpu = torch.UntypedStorage.resize_


def _resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
    if storage.device.type == "cpu":
        return _resize_on_cpu(storage, size)
    status = _library.sim_resize(ctypes.c_void_p(storage._cdata), ctypes.c_int64(size))
    if status and b"out of memory" in _library.sim_message():
        raise torch.OutOfMemoryError(_library.sim_message().decode())
    _told(status)
    return storage


_as_tensor_of_torch = torch.as_tensor


def _as_tensor(data: Any, *arguments: Any, **named: Any) -> torch.Tensor:
    interface = getattr(data, "__cuda_array_interface__", None)
    if interface is None or isinstance(data, torch.Tensor):
        if not isinstance(data, torch.Tensor):
            named.setdefault("device", torch.get_default_device())  # which torch finds out by the function's name
        return _as_tensor_of_torch(data, *arguments, **named)
    if interface["typestr"] != "|u1" or len(interface["shape"]) != 1:
        raise ValueError("memory is described as bytes here")
    seen: torch.Tensor = torch.ops.simulated_gpu.bytes_at(interface["data"][0], interface["shape"][0])
    return seen


def _told(status: int) -> None:
    if status:
        raise torch.AcceleratorError(_library.sim_message().decode())


class Stream:
    """A stream: its number. All streams run in the order of the program."""

    _next = 1

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.stream_id = self.cuda_stream = Stream._next
        self.device = torch.device("cuda", 0)
        Stream._next += 1

    def synchronize(self) -> None:
        synchronize()

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def wait_event(self, event: "Event") -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record()
        return event


_default = Stream.__new__(Stream)
_default.stream_id = _default.cuda_stream = 0
_default.device = torch.device("cuda", 0)
_current = [_default]


@contextmanager
def stream(which: Stream | None) -> Iterator[None]:
    if which is None:
        yield
        return
    _current.append(which)
    _library.sim_set_stream(ctypes.c_int64(which.stream_id))
    try:
        yield
    finally:
        _current.pop()
        _library.sim_set_stream(ctypes.c_int64(_current[-1].stream_id))


class Event:
    """An event: how far the program had come."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._position: int | None = None
        self._enable_timing = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        self._position = _library.sim_position()
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        if self._position is not None:
            _told(_library.sim_wait_until(ctypes.c_int64(self._position)))

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        if not (self._enable_timing and end._enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return max(1e-3, (end._time - self._time) * 1e3)


_captured: list["CUDAGraph"] = []


class CUDAGraph:
    """A graph: the calls of operators, which the library keeps, and those of kernels, which are Python's."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._number = -1
        self._calls: list[tuple[int, Callable[[], None]]] = []
        self._is_done = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        number = pool[1] if pool is not None else _library.sim_new_pool()
        self._number = _library.sim_capture_begin(ctypes.c_int64(number))
        if self._number < 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream, one at a time")
        _captured.append(self)

    def capture_end(self) -> None:
        if self in _captured:
            _captured.remove(self)
        status = _library.sim_capture_end()
        if status:
            what = {1: "there is nothing to end", 2: "operation failed due to a previous error during capture"}
            raise torch.AcceleratorError(f"CUDA error: {what[status]}")
        self._is_done = True

    def note(self, call: Callable[[], None]) -> None:
        self._calls.append((_library.sim_num_calls(ctypes.c_int64(self._number)), call))

    def replay(self) -> None:
        if not self._is_done:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        begin = 0
        for before, call in self._calls:
            self._run(begin, before)
            call()
            begin = before
        self._run(begin, _library.sim_num_calls(ctypes.c_int64(self._number)))

    def _run(self, begin: int, end: int) -> None:
        number = ctypes.c_int64(self._number)
        if end > begin or not begin:
            _told(_library.sim_replay(number, ctypes.c_int64(begin), ctypes.c_int64(end)))

    def reset(self) -> None:
        if self._number >= 0 and self._is_done:
            _library.sim_drop(ctypes.c_int64(self._number))
            self._number, self._is_done = -1, False
            self._calls.clear()

    def __del__(self) -> None:
        self.reset()


def call_on_gpu(call: Callable[[], None]) -> None:
    """Run a kernel, or note it down where its launch is captured."""
    if _library.sim_is_capturing():
        _captured[-1].note(call)
    else:
        call()


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor of the GPU as the CPU sees it, without a claim to it."""
    seen: torch.Tensor = torch.ops.simulated_gpu.on_cpu(tensor)
    return seen


def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU as one of the GPU, without a copy that anybody would wait for."""
    result = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    on_cpu(result).copy_(tensor)
    return result


def owns(address: int, size: int) -> bool:
    """Whether bytes of the GPU belong to somebody."""
    return bool(_library.sim_owns(ctypes.c_void_p(address), ctypes.c_int64(size)))


def synchronize(device: Any = None) -> None:
    _told(_library.sim_synchronize(b"synchronize"))


def empty_cache() -> None:
    _told(_library.sim_empty_cache())


def forbid_waits(mode: str | int) -> None:
    modes: dict[str | int, int] = {"default": 0, "warn": 0, "error": 1, 0: 0, 1: 0, 2: 1}
    _library.sim_forbid_waits(modes[mode])


@contextmanager
def device(which: Any) -> Iterator[None]:
    """All is on the one device."""
    yield


def properties(which: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=TOTAL,
        multi_processor_count=MULTIPROCESSORS,
        warp_size=32,
        L2_cache_size=50 * 2**20,
        max_threads_per_multi_processor=2048,
        shared_memory_per_block_optin=SHARED_MEMORY,
        regs_per_multiprocessor=65536,
    )


def memory_stats(which: Any = None) -> dict[str, int]:
    return {
        "num_ooms": _library.sim_num_ooms(),
        "allocated_bytes.all.current": _library.sim_allocated(),
        "reserved_bytes.all.current": _library.sim_reserved(),
        "reserved_bytes.all.peak": _library.sim_peak(),
    }


def _nothing() -> Callable[..., None]:
    """What does nothing. Each time another function: torch's compiler has rules for each, by identity."""
    return lambda *_, **__: None


def _of_torch_cuda() -> dict[str, Any]:
    return {
        "_is_compiled": lambda: True,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": _nothing(),
        "_lazy_init": _nothing(),
        "_lazy_call": _nothing(),
        "manual_seed": _nothing(),
        "manual_seed_all": _nothing(),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _nothing(),
        "device": device,
        "get_device_name": lambda which=None: NAME,
        "get_device_capability": lambda which=None: CAPABILITY,
        "get_device_properties": properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda which=None: (_library.sim_free(), _library.sim_total()),
        "memory_reserved": lambda which=None: _library.sim_reserved(),
        "max_memory_reserved": lambda which=None: _library.sim_peak(),
        "memory_allocated": lambda which=None: _library.sim_allocated(),
        "reset_peak_memory_stats": lambda which=None: _library.sim_forget_peak(),
        "memory_stats": memory_stats,
        "empty_cache": empty_cache,
        "synchronize": synchronize,
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": lambda which=None: _current[-1],
        "default_stream": lambda which=None: _default,
        "set_sync_debug_mode": forbid_waits,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: (0, _library.sim_new_pool()),
        "is_current_stream_capturing": lambda: bool(_library.sim_is_capturing()),
    }


def _of_torch_c() -> dict[str, Any]:
    return {
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": _nothing(),
        "_cuda_exchangeDevice": lambda index: 0,
        "_cuda_maybeExchangeDevice": lambda index: 0,
        "_cuda_endAllocateToPool": _nothing(),
        "_cuda_releasePool": _nothing(),
        "_host_emptyCache": _nothing(),
        "_accelerator_emptyHostCache": _nothing(),
        "_cuda_getCurrentRawStream": lambda index: _current[-1].cuda_stream,
    }
