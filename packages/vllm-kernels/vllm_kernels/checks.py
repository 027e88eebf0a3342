"""Cheap argument checks shared by the public functions, which raise a ``ValueError`` that names the argument."""

import torch


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int | None, ...]) -> None:
    """``expected`` has one entry per dimension; None stands for any size."""
    shape = tensor.shape
    if shape == expected or _matches(shape, expected):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in expected)
    raise ValueError(f"{name} must have shape [{wanted}], got {list(shape)}")


def _matches(shape: torch.Size, expected: tuple[int | None, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    # Not ``all`` of a generator, which takes five times as long.
    for size, want in zip(shape, expected, strict=True):  # noqa: SIM110
        if size != want and want is not None:
            return False
    return True


def check_dtype(name: str, tensor: torch.Tensor, *expected: torch.dtype) -> None:
    """The dtype must be one of ``expected``."""
    if tensor.dtype not in expected:
        raise ValueError(f"{name} must be {' or '.join(str(dtype) for dtype in expected)}, got {tensor.dtype}")


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """The tensor must hold floating point numbers."""
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def where(device: torch.device | str | None) -> torch.device:
    """A device that may be left open: then the one that torch takes by default."""
    return torch.get_default_device() if device is None else torch.device(device)
