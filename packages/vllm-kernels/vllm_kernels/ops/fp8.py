"""Projections of fp8 numbers by fp8 numbers (e4m3, arXiv:2209.05433): made here, multiplied by ``ops.linear``."""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.fp8_weight import Fp8Weight
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops.linear import check_sizes

BLOCK = 128
"""Rows and columns of a block, as DeepSeek-V3 has them."""


def new_weight(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    block: int | None = None,
    gated: bool = False,
) -> LinearWeight:
    """A weight of e4m3 that is not filled yet: ``ops.linear.fill`` rounds rows of floats, ``fill_fp8`` takes what a
    checkpoint has.

    An entry stands for itself times its scale, which is ``max|w| / 448`` of its row or block where floats are rounded.
    Activations are rounded alike as they come, with a scale for each token, or with blocks for each token and
    ``block`` columns (arXiv:2412.19437, section 3.3), or with one that ``set_input_scale`` says. Sums are fp32. A row
    with an infinity or NaN becomes NaN (of a given scale, with NaN only), and no other does.

    Args:
        out_features, in_features: its rows and columns.
        dtype: of the activations that it meets, and of the results.
        device: where it lives; None for the one that torch takes by default. A GPU older than Ada multiplies floats
            instead.
        block: 128: so many rows and columns share a scale. ``in_features`` are whole blocks then; the last rows may be
            fewer, and ``fill`` begins at whole blocks. None: each row has a scale; one for the whole tensor is the
            same for all rows.
        gated: for ``gated_linear``; then ``out_features`` counts gate and value.

    Raises:
        ValueError: an argument is not as described.
    """
    check_sizes(out_features, in_features, gated)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    if block not in (None, BLOCK):
        raise ValueError(f"block must be {BLOCK} or None, got {block}")
    if block and in_features % block:
        raise ValueError(f"in_features must be a multiple of block={block}, got {in_features}")
    device = where(device)
    with device:
        weight: LinearWeight = face_of("fp8", device).new_weight(out_features, in_features, dtype, block, gated)
    return weight


def fill_fp8(weight: LinearWeight, entries: torch.Tensor, scales: torch.Tensor, start: int = 0) -> None:
    """Store the rows ``[start, start + len(entries))`` of a weight that a checkpoint has as fp8.

    Args:
        weight: from ``new_weight`` of this module.
        entries: e4m3 ``[n, in_features]``.
        scales: floating point: ``[n]``, or ``[1]`` for all rows the same; with blocks,
            ``[n / 128, in_features / 128]``, rounded up.
        start: first row; with blocks, a multiple of 128.

    Raises:
        ValueError: shapes, dtypes, rows or the weight itself do not fit.
    """
    if not isinstance(weight, Fp8Weight):
        raise ValueError("weight must be one of fp8 (ops.fp8.new_weight)")
    check_shape("entries", entries, (None, weight.in_features))
    check_dtype("entries", entries, torch.float8_e4m3fn)
    count = len(entries)
    if start < 0 or start + count > weight.out_features:
        raise ValueError(f"rows {start} to {start + count} are outside of the weight's {weight.out_features}")
    check_floating("scales", scales)
    if weight.block is None:
        check_shape("scales", scales, (1,) if scales.shape == (1,) else (count,))
        scales = scales.view(-1, 1)
    else:
        if start % weight.block:
            raise ValueError(f"start must be a multiple of block={weight.block}, got {start}")
        check_shape("scales", scales, tuple(weight.scales_of(start, count).shape))
    weight.fill_fp8(entries, scales, start)


def set_input_scale(weight: LinearWeight, scale: torch.Tensor) -> None:
    """Let all activations have one scale, which a checkpoint says, instead of one each found from their largest.

    What is beyond 448 times the scale is rounded to that. A merged projection takes the largest of its parts' scales;
    the scales of their weights stay their own, as ``fill_fp8`` takes one for each range of rows.

    Args:
        weight: from ``new_weight`` of this module, without blocks.
        scale: floating point, one element, finite and above 0.

    Raises:
        ValueError: the scale or the weight is not as described.
    """
    if not isinstance(weight, Fp8Weight) or weight.block is not None:
        raise ValueError("weight must be one of fp8 (ops.fp8.new_weight) without blocks")
    check_floating("scale", scale)
    if scale.numel() != 1:
        raise ValueError(f"scale must have one element, got {list(scale.shape)}")
    value = float(scale)
    if not 0 < value < float("inf"):
        raise ValueError(f"scale must be finite and above 0, got {value}")
    weight.input_scale = scale.to(weight.scales).view(1)
