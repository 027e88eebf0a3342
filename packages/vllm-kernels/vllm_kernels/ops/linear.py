"""Dense projection."""

import torch

from vllm_kernels.backend import face_of


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: ``[..., in_features]``, floating point.
        weight: ``[out_features, in_features]``, dtype of ``x``.
        bias: ``[out_features]`` or None.

    Returns:
        ``[..., out_features]``, dtype of ``x``.

    Raises:
        ValueError: sizes or dtypes do not fit.
    """
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"weight must be [out_features, {x.shape[-1]}], got {list(weight.shape)}")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight must have the dtype of x ({x.dtype}), got {weight.dtype}")
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    result: torch.Tensor = face_of("linear", x.device).linear(x, weight, bias)
    return result
