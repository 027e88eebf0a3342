"""Activations of 8 bits: norms and gates that round what they make, and products that take it.

What is rounded is the result of the plain operation, in its type, so that a fused one gives the same numbers as the
two done apart. With a scale for each token: to e4m3, ``scale = max|x| / 448`` and ``value = x / scale``; to int8,
``scale = max|x| / 127`` and ``value = x * (127 / max|x|)``; a row with an infinity or NaN has zeros and the scale NaN.
With a given scale, ``value = x / scale``, and what is beyond the largest number is that number; NaN stays NaN in e4m3,
and is 0 in int8. All to the nearest, ties to the even one.
"""

from typing import get_args

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_shape
from vllm_kernels.fp8_weight import Fp8Weight
from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.ops.linear import ACTIVATIONS
from vllm_kernels.quantized_weight import QuantizedWeight
from vllm_kernels.rounded_activations import Rounded
from vllm_kernels.rounded_input_weight import RoundedInputWeight

DTYPES = (torch.float8_e4m3fn, torch.int8)


def round_tokens(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Rounded:
    """Round activations.

    Args:
        x: ``[..., k]``, floating point.
        dtype: ``torch.float8_e4m3fn`` or ``torch.int8``.
        scale: fp32 with one element, above 0: of all tokens; None: each has its own.

    Raises:
        ValueError: an argument is not as described.
    """
    _check(x, dtype, scale)
    result: Rounded = face_of("rounded", x.device).round_tokens(x, dtype, scale)
    return result


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    *,
    unit_offset: bool = False,
) -> Rounded:
    """``round_tokens`` of ``ops.norm.rms_norm``.

    Args:
        x, weight, eps, unit_offset: see ``ops.norm.rms_norm``.
        dtype, scale: see ``round_tokens``.

    Raises:
        ValueError: an argument is not as described.
    """
    _check(x, dtype, scale)
    check_shape("weight", weight, (x.shape[-1],))
    result: Rounded = face_of("rounded", x.device).rms_norm(x, weight, eps, dtype, scale, unit_offset)
    return result


def fused_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    *,
    unit_offset: bool = False,
) -> tuple[Rounded, torch.Tensor]:
    """``round_tokens`` of the first result of ``ops.norm.fused_add_rms_norm``, and its second one.

    Args:
        x, residual, weight, eps, unit_offset: see ``ops.norm.fused_add_rms_norm``.
        dtype, scale: see ``round_tokens``.

    Raises:
        ValueError: an argument is not as described.
    """
    _check(x, dtype, scale)
    check_shape("residual", residual, tuple(x.shape))
    check_dtype("residual", residual, x.dtype)
    check_shape("weight", weight, (x.shape[-1],))
    result: tuple[Rounded, torch.Tensor] = face_of("rounded", x.device).fused_add_rms_norm(
        x, residual, weight, eps, dtype, scale, unit_offset
    )
    return result


def activation_and_mul(
    x: torch.Tensor, activation: Activation, dtype: torch.dtype, scale: torch.Tensor | None = None
) -> Rounded:
    """``round_tokens`` of ``silu_and_mul`` or another gate of ``ops.activation``.

    Args:
        x: ``[..., 2 * d]``, floating point.
        activation: ``silu``, ``gelu`` (exact), ``gelu_tanh`` or ``swigluoai``.
        dtype, scale: see ``round_tokens``.

    Returns:
        Values ``[..., d]``.

    Raises:
        ValueError: an argument is not as described.
    """
    _check(x, dtype, scale)
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even last size (gate and value halves), got {list(x.shape)}")
    _check_activation(activation)
    result: Rounded = face_of("rounded", x.device).activation_and_mul(x, activation, dtype, scale)
    return result


def linear(
    x: Rounded,
    weight: LinearWeight,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``ops.linear.linear`` of activations that are rounded already.

    Args:
        x: e4m3 for a weight of ``ops.fp8`` with a scale for each row, int8 for one of ``ops.quantization`` with
            ``activation_bits=8``.
        weight: not gated.
        bias: ``[out_features]``, dtype of the weight, or None.
        residual: ``[..., out_features]``, dtype of the weight, or None.
        out_dtype: of the result: that of the weight, or ``torch.float32``.

    Raises:
        ValueError: sizes or dtypes do not fit.
    """
    takes = _check_product(x, weight, bias)
    if weight.gated:
        raise ValueError("weight is gated: gated_linear multiplies it")
    out_dtype = out_dtype or weight.dtype
    if out_dtype not in (weight.dtype, torch.float32):
        raise ValueError(f"out_dtype must be {weight.dtype} or torch.float32, got {out_dtype}")
    shape = (*x.values.shape[:-1], weight.out_features)
    if residual is not None:
        check_shape("residual", residual, shape)
        check_dtype("residual", residual, weight.dtype)
        residual = residual.reshape(-1, weight.out_features)
    return takes.multiply_rounded(_rows(x), bias, residual, out_dtype).view(shape)


def gated_linear(
    x: Rounded, weight: LinearWeight, activation: Activation, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``ops.linear.gated_linear`` of activations that are rounded already.

    Args:
        x, bias: see ``linear``.
        weight: gated.
        activation: see ``ops.linear.gated_linear``.

    Raises:
        ValueError: sizes, dtypes or the name of the activation do not fit.
    """
    takes = _check_product(x, weight, bias)
    if not weight.gated:
        raise ValueError("weight is not gated: linear multiplies it")
    _check_activation(activation)
    result = takes.multiply_gated_rounded(_rows(x), bias, activation)
    return result.view(*x.values.shape[:-1], weight.out_features // 2)


def _rows(x: Rounded) -> Rounded:
    return Rounded(x.values.reshape(-1, x.values.shape[-1]), x.scales.reshape(-1))


def _check(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> None:
    if not x.dtype.is_floating_point or x.ndim == 0 or not x.shape[-1]:
        raise ValueError(f"x must be floating point [..., k], got {x.dtype} {list(x.shape)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(str, DTYPES))}, got {dtype}")
    if scale is not None:
        check_dtype("scale", scale, torch.float32)
        if scale.numel() != 1:
            raise ValueError(f"scale must have one element, got {list(scale.shape)}")


def _check_activation(activation: str) -> None:
    if activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _check_product(x: Rounded, weight: LinearWeight, bias: torch.Tensor | None) -> RoundedInputWeight:
    if isinstance(weight, Fp8Weight) and weight.block is None:
        check_dtype("values", x.values, torch.float8_e4m3fn)
        found: RoundedInputWeight = weight
    elif isinstance(weight, QuantizedWeight) and weight.scheme.activation_bits:
        check_dtype("values", x.values, torch.int8)
        found = weight
    else:
        raise ValueError("weight must be of fp8 with a scale for each row, or quantised with activation_bits=8")
    check_dtype("scales", x.scales, torch.float32)
    check_shape("values", x.values, (*x.scales.shape, weight.in_features))
    if bias is not None:
        check_shape("bias", bias, (weight.out_features,))
        check_dtype("bias", bias, weight.dtype)
    return found
