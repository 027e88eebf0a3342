"""Normalisation of the last dimension."""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_shape


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, unit_offset: bool = False) -> torch.Tensor:
    """Root mean square norm (arXiv:1910.07467): ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    All of it, the product with the weight included, is computed in fp32 (fp64 for fp64 input) and rounded once.

    Args:
        x: ``[..., hidden]``, floating point.
        weight: ``[hidden]``.
        eps: added to the mean of squares.
        unit_offset: multiply by ``1 + weight``, as Gemma stores its weights.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        ValueError: ``weight`` does not fit ``x``.
    """
    check_shape("weight", weight, (x.shape[-1],))
    result: torch.Tensor = face_of("norm", x.device, "rms_norm").rms_norm(x, weight, eps, unit_offset)
    return result


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, unit_offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a layer's output to the residual stream and normalise the sum.

    The sum is rounded to the dtype of ``x`` before it is normalised, so that it equals the two steps done apart.

    Args:
        x: ``[..., hidden]``, floating point: what the layer brought.
        residual: shape and dtype of ``x``.
        weight, eps, unit_offset: as in ``rms_norm``.

    Returns:
        ``(rms_norm(x + residual), x + residual)``, both new tensors with shape and dtype of ``x``.

    Raises:
        ValueError: ``residual`` or ``weight`` does not fit ``x``.
    """
    _check_residual(x, residual)
    check_shape("weight", weight, (x.shape[-1],))
    result: tuple[torch.Tensor, torch.Tensor] = face_of("norm", x.device, "fused_add_rms_norm").fused_add_rms_norm(
        x, residual, weight, eps, unit_offset
    )
    return result


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Layer norm (arXiv:1607.06450): ``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension.

    Computed in fp32 (fp64 for fp64 input) and rounded once; ``var`` is the biased variance.

    Args:
        x: ``[..., hidden]``, floating point.
        weight: ``[hidden]``, dtype of ``x``; None: ones.
        bias: ``[hidden]``, dtype of ``x``; None: zeros.
        eps: added to the variance.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        ValueError: ``weight`` or ``bias`` does not fit ``x``.
    """
    _check_affine(x, weight, bias)
    result: torch.Tensor = face_of("norm", x.device, "layer_norm").layer_norm(x, weight, bias, eps)
    return result


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a layer's output to the residual stream and normalise the sum, which is rounded to the dtype of ``x`` before.

    Args:
        x: ``[..., hidden]``, floating point: what the layer brought.
        residual: shape and dtype of ``x``.
        weight, bias, eps: as in ``layer_norm``.

    Returns:
        ``(layer_norm(x + residual), x + residual)``, both new tensors with shape and dtype of ``x``.

    Raises:
        ValueError: ``residual``, ``weight`` or ``bias`` does not fit ``x``.
    """
    _check_residual(x, residual)
    _check_affine(x, weight, bias)
    result: tuple[torch.Tensor, torch.Tensor] = face_of("norm", x.device, "fused_add_layer_norm").fused_add_layer_norm(
        x, residual, weight, bias, eps
    )
    return result


def _check_residual(x: torch.Tensor, residual: torch.Tensor) -> None:
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual must be like x ({list(x.shape)}, {x.dtype}), got {list(residual.shape)}, {residual.dtype}"
        )


def _check_affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_shape(name, vector, (x.shape[-1],))
