"""Kernel graphs: the kernel calls of a function, recorded once and replayed from C++."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_kernels.cpu import native
from vllm_kernels.cpu.native import FLOAT, Kernel
from vllm_kernels.cpu.scratch import Scratch

_EMPTY = torch.ops.aten.empty.memory_format
_EMPTY_LIKE = torch.ops.aten.empty_like.default


class NotCapturable(RuntimeError):
    """A function did something that is not a call of a native kernel, so that replaying would leave it out."""


class _Argument(ctypes.Union):
    """``Argument`` of ``csrc/cpu/abi.h``."""

    _fields_ = (("integer", ctypes.c_int64), ("real", ctypes.c_double))


class Graph:
    """Calls of native kernels in their order, with the addresses that they had when they were recorded.

    ``scratch``: what they hand to one another is there.
    """

    def __init__(self, calls: list[tuple[Kernel, tuple[Any, ...]]], scratch: Scratch) -> None:
        self._scratch = scratch
        self._names = [kernel.name for kernel, _ in calls]
        self._count = len(calls)
        self._invokes = (ctypes.c_void_p * self._count)(*(kernel.invoke for kernel, _ in calls))
        self._starts = (ctypes.c_int64 * self._count)()
        self._arguments = (_Argument * sum(len(arguments) for _, arguments in calls))()
        place = 0
        for number, (kernel, arguments) in enumerate(calls):
            self._starts[number] = place
            for kind, value in zip(kernel.argtypes, arguments, strict=True):
                if kind is FLOAT:
                    self._arguments[place].real = value
                else:
                    self._arguments[place].integer = value or 0
                place += 1
        self._replay = native.library().vllm_cpu_replay
        self._addresses = tuple(ctypes.addressof(array) for array in (self._invokes, self._starts, self._arguments))

    def replay(self) -> None:
        """Call them again. Raises ``IndexError`` where one refuses an index that it finds in its inputs."""
        refused = self._replay(*self._addresses, self._count)
        if refused >= 0:
            raise IndexError(f"{self._names[refused]} was given an index outside of its table or cache")


_capturing = threading.Lock()


def capture(function: Callable[[], torch.Tensor], scratch: Scratch) -> tuple[Graph, torch.Tensor]:
    """Call ``function``, and record the native kernels that it calls.

    What it allocates comes from ``scratch``. Everything else that its kernels read or write must stay where it is.

    Returns:
        The graph, and the function's result, which is in ``scratch``: a replay writes it anew.

    Raises:
        NotCapturable: it computes with torch's operators, too.
    """
    calls: list[tuple[Kernel, tuple[Any, ...]]] = []
    with _capturing, _recorded(calls), _Watch(scratch):
        result = function()
    return Graph(calls, scratch), result


@contextmanager
def _recorded(calls: list[tuple[Kernel, tuple[Any, ...]]]) -> Iterator[None]:
    """Note each call of a kernel by this thread, and its arguments, in ``calls``."""
    caller = threading.get_ident()

    def record(kernel: Kernel, *arguments: Any) -> Any:
        if threading.get_ident() == caller:
            calls.append((kernel, arguments))
        function = cast(Callable[..., Any], kernel.function)
        return function(*arguments)

    native.set_recorder(record)
    try:
        yield
    finally:
        native.set_recorder(None)


class _Watch(TorchDispatchMode):
    """Serves what is allocated from ``scratch``, lets views pass, and refuses every other operator."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scratch = scratch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: wrapping a mode for torch's compiler imports that, which takes a second, and nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _EMPTY:
            return self._scratch.empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
        contiguous = kwargs.get("memory_format") is torch.contiguous_format
        if func is _EMPTY_LIKE and (contiguous or args[0].is_contiguous()):
            return self._scratch.empty(args[0].shape, kwargs.get("dtype") or args[0].dtype)
        if func.is_view:
            return func(*args, **kwargs)
        raise NotCapturable(str(func))
