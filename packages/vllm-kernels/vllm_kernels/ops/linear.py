"""Projections: a weight is made once, in a layout of its face's own, and multiplied many times."""

from typing import get_args

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.linear_weight import Activation, LinearWeight, RowNorm, outside

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def new_weight(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    gated: bool = False,
) -> LinearWeight:
    """A weight of floating point numbers, not filled yet; ``ops.quantization.new_weight`` has the quantised ones.

    Args:
        out_features, in_features: its rows and columns.
        dtype: of the weight, of the activations that it meets, and of the results.
        device: where it lives; None for the one that torch takes by default.
        gated: for ``gated_linear``; then ``out_features`` counts gate and value.

    Raises:
        ValueError: a size below 1, an odd ``out_features`` of a gated weight, or a type that is not floating point.
    """
    check_sizes(out_features, in_features, gated)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    device = where(device)
    with device:
        weight: LinearWeight = face_of("linear", device).new_weight(out_features, in_features, dtype, gated)
    return weight


def fill(weight: LinearWeight, rows: torch.Tensor, start: int = 0) -> None:
    """Store the rows ``[start, start + len(rows))`` of a weight, rounded to its type.

    Args:
        weight: to store in.
        rows: ``[n, in_features]``, floating point, any strides; it is not kept.
        start: first row.

    Raises:
        ValueError: shape or dtype do not fit, or rows beyond ``out_features``.
    """
    check_shape("rows", rows, (None, weight.in_features))
    check_floating("rows", rows)
    if start < 0 or start + len(rows) > weight.out_features:
        raise ValueError(f"rows {start} to {start + len(rows)} are outside of the weight's {weight.out_features}")
    weight.fill(rows, start)


def rows(weight: LinearWeight, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a weight, as those of an embedding table that is also the head: of quantised ones, what they stand for.

    Args:
        weight: any.
        ids: ``[n]``, int64, each in ``[0, out_features)``.

    Returns:
        ``[n, in_features]``, dtype of the weight: a new tensor.

    Raises:
        ValueError: shape or dtype do not fit.
        IndexError: an id is outside of the weight. On a GPU, which is not waited for, it counts as the nearest row.
    """
    check_shape("ids", ids, (None,))
    check_dtype("ids", ids, torch.int64)
    if ids.device.type == "cuda":
        ids = ids.clamp(0, weight.out_features - 1)
    elif len(ids) and not weight.checks_ids:
        low, high = torch.aminmax(ids)
        if int(low) < 0 or int(high) >= weight.out_features:
            raise outside(weight.out_features)
    return weight.rows(ids)


def linear(
    x: torch.Tensor,
    weight: LinearWeight,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    """``x @ weight.T + bias + residual``, summed in fp32 (fp64 for fp64) and rounded once.

    A row of the result depends on its row of ``x`` alone, in batches of one size; in all sizes where
    ``VLLM_BATCH_INVARIANT`` is set.

    Args:
        x: ``[..., in_features]``, dtype of the weight.
        weight: not gated.
        bias: ``[out_features]``, dtype of ``x``, or None.
        residual: ``[..., out_features]``, dtype of ``x``, or None.
        out_dtype: of the result: that of ``x``, or ``torch.float32``.
        norm: an RMS norm that the rows go through first; what comes of it is rounded once to the type of ``x``.

    Returns:
        ``[..., out_features]``.

    Raises:
        ValueError: sizes or dtypes do not fit.
    """
    rows = _check(x, weight, bias, norm)
    if weight.gated:
        raise ValueError("weight is gated: gated_linear multiplies it")
    out_dtype = out_dtype or x.dtype
    if out_dtype not in (x.dtype, torch.float32):
        raise ValueError(f"out_dtype must be {x.dtype} or torch.float32, got {out_dtype}")
    shape = (*x.shape[:-1], weight.out_features)
    if residual is not None:
        check_shape("residual", residual, shape)
        check_dtype("residual", residual, x.dtype)
        residual = residual.reshape(-1, weight.out_features)
    if norm is None:
        return weight.multiply(rows, bias, residual, out_dtype).view(shape)
    return weight.multiply_normed(rows, norm, bias, residual, out_dtype).view(shape)


def gated_linear(
    x: torch.Tensor,
    weight: LinearWeight,
    activation: Activation,
    bias: torch.Tensor | None = None,
    *,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    """``activation(x @ gate.T + gate bias) * (x @ value.T + value bias)`` (arXiv:2002.05202), rounded once.

    Args:
        x: ``[..., in_features]``, dtype of the weight.
        weight: gated: gate above value.
        activation: ``silu``, ``gelu`` (exact), ``gelu_tanh`` or ``swigluoai``; see ``ops.activation``.
        bias: ``[out_features]``, dtype of ``x``, or None.
        norm: as in ``linear``.

    Returns:
        ``[..., out_features / 2]``, dtype of ``x``.

    Raises:
        ValueError: sizes, dtypes or the name of the activation do not fit.
    """
    rows = _check(x, weight, bias, norm)
    if not weight.gated:
        raise ValueError("weight is not gated: linear multiplies it")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    shape = (*x.shape[:-1], weight.out_features // 2)
    if norm is None:
        return weight.multiply_gated(rows, bias, activation).view(shape)
    return weight.multiply_gated_normed(rows, norm, bias, activation).view(shape)


def check_sizes(out_features: int, in_features: int, gated: bool) -> None:
    """Raise ``ValueError`` for sizes that no weight can have."""
    for name, size in (("out_features", out_features), ("in_features", in_features)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if gated and out_features % 2:
        raise ValueError(f"out_features of a gated weight must be even, got {out_features}")


def _check(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, norm: RowNorm | None) -> torch.Tensor:
    """``x`` as ``[n, in_features]``."""
    if x.ndim == 0 or x.shape[-1] != weight.in_features:
        raise ValueError(f"x must be [..., {weight.in_features}], got {list(x.shape)}")
    check_dtype("x", x, weight.dtype)
    if bias is not None:
        check_shape("bias", bias, (weight.out_features,))
        check_dtype("bias", bias, x.dtype)
    if norm is not None:
        check_shape("norm.weight", norm.weight, (weight.in_features,))
    return x if x.ndim == 2 else x.reshape(-1, weight.in_features)
