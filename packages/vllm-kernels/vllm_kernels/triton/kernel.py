"""A Triton kernel together with all that it may be compiled for.

Launches say their compile-time values by name, and a kernel's ``configurations`` are made by the same functions that
choose them, so that what is compiled ahead of time (``vllm_kernels.aot``) is what runs.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_kernels.triton.dependent_launch import PARAMETER, are_used

# Sums and products of a kernel's text become fused multiply-adds: said here, as the default changes between versions.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

TYPES: dict[torch.dtype, str] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
"""Triton's names of torch's types."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""Types of activations that kernels take; float64 is left to torch."""


@dataclass(frozen=True)
class Configuration:
    """One compilation of a kernel.

    Args:
        types: argument -> ``"*bf16"`` (a pointer), ``"i32"``, ``"fp32"``; None: not given in this configuration.
        constants: compile-time parameter -> value.
        num_warps, num_stages: as Triton has them.
    """

    types: Mapping[str, str | None]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    @property
    def label(self) -> str:
        """What tells this configuration from others, in a line."""
        types = " ".join(sorted({kind for kind in self.types.values() if kind is not None and kind[0] == "*"}))
        missing = [name for name, kind in self.types.items() if kind is None]
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        without = f" without {','.join(missing)}" if missing else ""
        return f"{types} {constants}{without} warps={self.num_warps} stages={self.num_stages}"


class Kernel:
    """A function of ``triton.jit`` and its configurations.

    Args:
        function: what ``triton.jit`` gave.
        configurations: GPU family (``"sm_90"``) -> every configuration in which ``launch`` may be called there.
    """

    def __init__(self, function: Any, configurations: Callable[[str], Iterable[Configuration]]) -> None:
        self.function = function
        self.configurations = configurations

    @property
    def name(self) -> str:
        """Of the function."""
        name: str = self.function.__name__
        return name

    def launch(
        self,
        grid: tuple[int, ...],
        *arguments: Any,
        num_warps: int = 4,
        num_stages: int = 2,
        **constants: Any,
    ) -> None:
        """Run it over ``grid``, on the device of the tensors, whichever is the thread's current one.

        ``arguments`` in the order of its parameters; None for a tensor that is not there.
        """
        if 0 in grid:
            return
        if _recorders:
            configuration = Configuration(self._types(arguments), constants, num_warps, num_stages)
            for recorder in _recorders:
                recorder.append((self, configuration))
        device = next(value.device for value in arguments if isinstance(value, torch.Tensor))
        options = {"num_warps": num_warps, "num_stages": num_stages, PARAMETER: are_used(device)}
        if options[PARAMETER]:
            options["launch_pdl"] = True
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton would launch on the current one
                self.function[grid](*arguments, **constants, **options)
        else:
            self.function[grid](*arguments, **constants, **options)

    def _types(self, arguments: tuple[Any, ...]) -> dict[str, str | None]:
        return {name: _type_of(value) for name, value in zip(self.function.arg_names, arguments, strict=False)}


_recorders: list[list[tuple[Kernel, Configuration]]] = []


@contextmanager
def recorded() -> Iterator[list[tuple[Kernel, Configuration]]]:
    """All launches inside the ``with`` block, of all threads: which kernel, in which configuration."""
    launches: list[tuple[Kernel, Configuration]] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)


def pointer(dtype: torch.dtype) -> str:
    """The type of a tensor argument."""
    return f"*{TYPES[dtype]}"


def power_of_two(size: int, least: int = 1) -> int:
    """The first power of two that is at least ``size`` and ``least``."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def _type_of(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return pointer(value.dtype)
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
