"""Sums of tensors that no other operation has taken in."""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x + y``, rounded once.

    Args:
        x: any shape, floating point.
        y: shape and dtype of ``x``.

    Returns:
        Shape and dtype of ``x``: a new tensor.

    Raises:
        ValueError: ``y`` does not fit ``x``.
    """
    check_floating("x", x)
    check_shape("y", y, tuple(x.shape))
    check_dtype("y", y, x.dtype)
    result: torch.Tensor = face_of("add", x.device).add(x, y)
    return result
