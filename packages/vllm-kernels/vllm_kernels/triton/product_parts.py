"""Products whose columns are cut into parts: with few rows there are few tiles, and parts go to programs of their own.

A part stores its sums as they are; a second kernel adds the parts in order, then bias and residual.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer

MOST_PARTS = 8
ADDED = 1024
"""Columns of a row whose parts one program adds."""


@triton.jit
def finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT: tl.constexpr):
    """Store a tile: to ``out`` with bias and residual, or, as one of several parts, to ``parts``.

    How many parts there are is the size of a grid, and no compile-time value: it changes with the number of rows.
    """
    place = row[:, None].to(tl.int64) * OUT + column[None, :]
    if parts is not None:
        tl.store(parts + part.to(tl.int64) * num_rows * OUT + place, result, mask=present)
    else:
        if bias is not None:
            result += tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            result += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_parts", "num_rows"])
def add_parts_kernel(
    parts,
    bias,
    residual,
    out,
    num_parts,
    num_rows,
    out_features,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add the parts, ``[num_parts, num_rows, out_features]``, of BLOCK columns, in order, then bias and residual.

    The loop is of the most parts that there may be, and unrolled, so that no load waits for the sum before it.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = column < out_features
    result = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(MOST):
        there = column < tl.where(part < num_parts, out_features, 0)
        result += tl.load(parts + (part * num_rows + row) * out_features + column, mask=there, other=0.0)
    if bias is not None:
        result += tl.load(bias + column, mask=present, other=0.0).to(tl.float32)
    if residual is not None:
        result += tl.load(residual + row * out_features + column, mask=present, other=0.0).to(tl.float32)
    tl.store(out + row * out_features + column, result.to(out.dtype.element_ty), mask=present)


def parts_of(count: int, out: torch.Tensor) -> torch.Tensor | None:
    """Room for ``count`` parts of a result ``out``: fp32 ``[count, *out.shape]``; None where there is only one."""
    return out.new_empty(count, *out.shape, dtype=torch.float32) if count > 1 else None


def fold(
    parts: torch.Tensor | None, bias: torch.Tensor | None, residual: torch.Tensor | None, out: torch.Tensor
) -> None:
    """``out = sum of parts + bias + residual``, where there are parts."""
    if parts is not None:
        num_rows, out_features = out.shape
        add_parts.launch(
            (num_rows, -(-out_features // ADDED)),
            parts,
            bias,
            residual,
            out,
            len(parts),
            num_rows,
            out_features,
            MOST=MOST_PARTS,
            BLOCK=ADDED,
        )


def _add_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        for residual in (pointer(dtype), None):
            types: dict[str, str | None] = {"parts": "*fp32", "bias": None, "residual": residual}
            types |= {"out": pointer(dtype), "num_parts": "i32", "num_rows": "i32", "out_features": "i32"}
            found.append(Configuration(types, {"MOST": MOST_PARTS, "BLOCK": ADDED}))
    return found


add_parts = Kernel(add_parts_kernel, _add_configurations)
