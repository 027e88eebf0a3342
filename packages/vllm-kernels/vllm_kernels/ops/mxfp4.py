"""Projections with weights of MXFP4 (Microscaling Formats, OCP specification 1.0): made here, multiplied by
``ops.linear``.
"""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_shape, where
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.mxfp4_weight import BLOCK, Mxfp4Weight
from vllm_kernels.ops.linear import check_sizes


def new_weight(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    gated: bool = False,
) -> LinearWeight:
    """A weight of MXFP4 that is not filled yet: ``ops.linear.fill`` rounds rows of floats, ``fill_mxfp4`` takes what a
    checkpoint has.

    An entry is a number of e2m1 (0, 0.5, 1, 1.5, 2, 3, 4 or 6, with a sign) times the scale of its block of 32 columns:
    a power of two, stored as its exponent plus 127 (e8m0), where 255 makes all of the block NaN. Floats are rounded as
    the specification says: the scale is the greatest power of two that is not above ``max|w|``, over 4; entries go to
    the nearest number, ties to the even one, and saturate at 6. Activations stay as they are, and sums are fp32.

    Args:
        out_features, in_features: its rows and columns; whole blocks of columns.
        dtype: of the activations that it meets, and of the results.
        device: where it lives; None for the one that torch takes by default.
        gated: for ``gated_linear``; then ``out_features`` counts gate and value.

    Raises:
        ValueError: an argument is not as described.
    """
    check_sizes(out_features, in_features, gated)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    check_columns(in_features)
    device = where(device)
    with device:
        weight: LinearWeight = face_of("mxfp4", device).new_weight(out_features, in_features, dtype, gated)
    return weight


def fill_mxfp4(weight: LinearWeight, blocks: torch.Tensor, scales: torch.Tensor, start: int = 0) -> None:
    """Store the rows ``[start, start + len(blocks))`` of a weight that a checkpoint has as MXFP4.

    Args:
        weight: from ``new_weight`` of this module.
        blocks: uint8 ``[n, in_features / 32, 16]`` or ``[n, in_features / 2]``: two entries a byte, the even column in
            the lower half; an entry is a sign, two bits of exponent and one of fraction. Any strides.
        scales: uint8 ``[n, in_features / 32]``.
        start: first row.

    Raises:
        ValueError: shapes, dtypes, rows or the weight itself do not fit.
    """
    if not isinstance(weight, Mxfp4Weight):
        raise ValueError("weight must be one of MXFP4 (ops.mxfp4.new_weight)")
    entries = checked_entries(weight.in_features, blocks, scales)
    if start < 0 or start + len(entries) > weight.out_features:
        raise ValueError(f"rows {start} to {start + len(entries)} are outside of the weight's {weight.out_features}")
    weight.fill_mxfp4(entries, scales, start)


def check_columns(in_features: int) -> None:
    """Raise ``ValueError`` unless columns are whole blocks."""
    if in_features % BLOCK:
        raise ValueError(f"in_features must be a multiple of {BLOCK}, got {in_features}")


def checked_entries(in_features: int, blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``blocks`` as ``[n, in_features / 2]``. Raises ``ValueError`` unless shapes and dtypes are those of rows."""
    check_dtype("blocks", blocks, torch.uint8)
    check_dtype("scales", scales, torch.uint8)
    if blocks.ndim == 3:
        check_shape("blocks", blocks, (None, in_features // BLOCK, BLOCK // 2))
        blocks = blocks.flatten(1)
    check_shape("blocks", blocks, (None, in_features // 2))
    check_shape("scales", scales, (len(blocks), in_features // BLOCK))
    return blocks
