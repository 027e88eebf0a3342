"""The native library: loading it, its levels, and its kernels as Python callables.

A level is a set of instructions: ``avx2``, ``avx512``, ``avx512_bf16`` (with VNNI and VBMI), ``amx``. A machine serves
every level up to its own. The environment variable ``VLLM_KERNELS_CPU_LEVEL`` forces a lower one.
"""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).parent / "libvllm_kernels_cpu.so"
LEVELS = ("avx2", "avx512", "avx512_bf16", "amx")
VARIABLE = "VLLM_KERNELS_CPU_LEVEL"

DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 4,
    torch.int8: 5,
}
"""``DType`` of ``csrc/cpu/abi.h``."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What activations can be; anything else is left to the eager face."""

# Types of arguments.
POINTER, INT64, INT32, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class NotAvailable(RuntimeError):
    """There is no native library, or none that this machine can run."""


class _Entry(ctypes.Structure):
    """``KernelEntry`` of ``csrc/cpu/abi.h``."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("invoke", ctypes.c_void_p))


class Kernel:
    """One kernel; ``call`` is its function for the level in use. Tensors are passed as ``data_ptr()``.

    Args:
        name: in ``csrc/cpu``.
        argtypes: types of its arguments.
        returns: type of its result; None for a function without one.
        captured: whether a graph has its calls; not those of a check that is made anew before each replay.

    Once it is bound to a level, ``function`` is what ``call`` ends in, and ``invoke`` the address of what calls it with
    recorded arguments.
    """

    __slots__ = ("_prototype", "argtypes", "call", "captured", "function", "invoke", "name")

    def __init__(self, name: str, *argtypes: Any, returns: Any = None, captured: bool = True) -> None:
        self.name = name
        self.argtypes = argtypes
        self.captured = captured
        self._prototype = ctypes.CFUNCTYPE(returns, *argtypes)
        self.call: Callable[..., Any] = self._first_call
        self.function: Callable[..., Any] | None = None
        self.invoke = 0
        kernels.append(self)

    def _first_call(self, *args: Any) -> Any:
        self.bind(level())
        return self.call(*args)

    def bind(self, to: str) -> None:
        """Use the function of level ``to`` from now on."""
        found = library().vllm_cpu_kernel(self.name.encode(), LEVELS.index(to))
        if not found:
            raise NotAvailable(f"{LIBRARY.name} has no kernel {self.name}: it is older than the Python files beside it")
        self.invoke = found.contents.invoke
        self.function = self._prototype(found.contents.function)
        self.take_recorder()

    def take_recorder(self) -> None:
        """Let ``call`` go by the recorder, if there is one and it is to know."""
        if self.function is not None:
            record = _recorder if self.captured else None
            self.call = self.function if record is None else partial(record, self)


kernels: list[Kernel] = []
"""All that there are."""
_level: str | None = None
_recorder: Callable[..., Any] | None = None


def set_recorder(recorder: Callable[..., Any] | None) -> None:
    """Let ``recorder(kernel, *arguments)`` make all calls of kernels, of all threads, until it is None."""
    global _recorder
    _recorder = recorder
    for kernel in kernels:
        kernel.take_recorder()


def why_not() -> str | None:
    """Why the native kernels cannot serve here; None when they can.

    Raises:
        ValueError: the environment variable names a level that is unknown, or that this machine does not have.
    """
    try:
        level()
    except NotAvailable as reason:
        return str(reason)
    return None


def level() -> str:
    """The level in use.

    Raises:
        NotAvailable: see ``why_not``.
        ValueError: likewise.
    """
    global _level
    if _level is None:
        best = machine_level()
        wanted = os.environ.get(VARIABLE) or best
        _level = _checked(wanted, best)
    return _level


@cache
def machine_level() -> str:
    """The highest level of this machine. Raises ``NotAvailable``."""
    number: int = library().vllm_cpu_level()
    if number < 0:
        raise NotAvailable("the processor has no AVX2, which the native kernels need")
    return LEVELS[number]


@contextmanager
def use_level(name: str) -> Iterator[None]:
    """Serve by the kernels of one level inside the ``with`` block, in all threads. Raises ``ValueError``."""
    global _level
    before, _level = level(), _checked(name, machine_level())
    _bind_all()
    try:
        yield
    finally:
        _level = before
        _bind_all()


def machine_levels() -> tuple[str, ...]:
    """Every level that this machine serves, lowest first; none without a native library."""
    return () if why_not() else LEVELS[: LEVELS.index(machine_level()) + 1]


def _bind_all() -> None:
    for kernel in kernels:
        kernel.bind(level())


def _checked(name: str, best: str) -> str:
    there = LEVELS[: LEVELS.index(best) + 1]
    if name not in there:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(there)} on this machine, got {name!r}")
    return name


@cache
def library() -> ctypes.CDLL:
    """The native library. Raises ``NotAvailable``."""
    if not LIBRARY.exists():
        raise NotAvailable(
            f"{LIBRARY.name} was not built: "
            "that takes an x86-64 processor and a C++ compiler when vllm-kernels is installed"
        )
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise NotAvailable(f"{LIBRARY.name} cannot be loaded: {error}") from error
    loaded.vllm_cpu_kernel.restype = ctypes.POINTER(_Entry)
    loaded.vllm_cpu_kernel.argtypes = (ctypes.c_char_p, ctypes.c_int)
    loaded.vllm_cpu_replay.restype = ctypes.c_int64
    loaded.vllm_cpu_replay.argtypes = (*(POINTER,) * 3, INT64)
    loaded.vllm_cpu_use_openmp.argtypes = (ctypes.c_void_p,) * 3
    loaded.vllm_cpu_use_openmp(*_openmp())
    return loaded


def _openmp() -> tuple[int | None, int | None, int | None]:
    """Entry points of the OpenMP runtime that torch has loaded; all None when it has none: one thread then."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    for path in _loaded_openmp():
        runtime = ctypes.CDLL(path)
        try:
            first, second, third = (ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in names)
        except AttributeError:
            continue
        return first, second, third
    return None, None, None


def _loaded_openmp() -> list[str]:
    """Files of OpenMP runtimes in this process, torch's own first."""
    maps = Path("/proc/self/maps").read_text()
    paths = dict.fromkeys(re.findall(r"/\S*/lib(?:g|i|)omp[^/\s]*\.so[^/\s]*", maps))
    return sorted(paths, key=lambda path: "/torch" not in path)
