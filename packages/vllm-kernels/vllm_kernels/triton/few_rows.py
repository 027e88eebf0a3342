"""Products of few rows by weights of 16 and 32 bits: the projections of a decode step with few sequences.

Whoever computes them, they take as long as reading the weight does. What can be saved is the kernels around them, each
of which takes a microsecond or two: norm, bias, residual and gate are part of the product here. See also ``one_row``.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.triton.activation import apply_gate
from vllm_kernels.triton.dependent_launch import ask_for_rows, ask_for_weights, let_next_start, wait
from vllm_kernels.triton.kernel import Configuration, Kernel, pointer
from vllm_kernels.triton.projection_shapes import FIELDS, Projection, class_of, compiled_types
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Work

MOST_ROWS = 16
"""As many as a product of Ampere's and Hopper's tensor cores has in any case. More are left to cuBLAS."""


@triton.jit
def add_turn(total, values, weight, column, present, inner, IN: tl.constexpr):
    """``total`` and one turn's ``values [SLICES, BLOCK_M, BLOCK_K]`` by columns ``inner`` of rows of the weight."""
    entries = tl.load(
        weight + column[None, None, :].to(tl.int64) * IN + inner[:, :, None],
        mask=present[None, None, :] & (inner < IN)[:, :, None],
        other=0.0,
    )
    return tl.dot(values, entries, total, input_precision="ieee")


@triton.jit
def times_norm(values, factor, UNIT_OFFSET: tl.constexpr):
    """Rows of ``x`` by weights of their norm, rounded."""
    if UNIT_OFFSET:
        factor = factor.to(tl.float32) + 1.0
    return (values * factor).to(values.dtype)


@triton.jit
def store_tile(
    total,
    other,
    squares,
    norm,
    bias,
    residual,
    out,
    row,
    column,
    num_rows,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """What follows the sums ``total`` (with an ACTIVATION the gate's, and ``other`` the values'), ``[row, column]``.

    ``squares [BLOCK_M]``: sums over whole rows of ``x``, where there is a norm.
    """
    in_out = column < OUT
    if norm is not None:
        scale = 1.0 / tl.sqrt(squares / IN + eps)
        total *= scale[:, None]
        other *= scale[:, None]
    if bias is not None:
        total += tl.load(bias + column, mask=in_out, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION is not None:
            other += tl.load(bias + OUT + column, mask=in_out, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION is not None:
        total = apply_gate(total, other, ACTIVATION)
    place = row[:, None].to(tl.int64) * OUT + column[None, :]
    present = (row < num_rows)[:, None] & in_out[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_rows"])
def few_rows_kernel(
    x,
    x_scales,
    norm,
    weight,
    scales,
    bias,
    residual,
    out,
    num_rows,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_N columns of ``out [num_rows, OUT]``, at most BLOCK_M rows: ``x [num_rows, IN]`` by rows of the weight.

    Entries of both may have ``x_scales [num_rows]`` and ``scales``, one for each row of the weight.

    With an ACTIVATION the weight has ``2 * OUT`` rows, the gate's above the value's, and ``bias`` as many entries. With
    a ``norm [IN]`` rows of ``x`` are multiplied by it first, and sums divided by the root of their row's mean square.

    A turn goes over SLICES times BLOCK_K columns. Each warp has a slice of them, and sums of its own, which are added
    at the end: a small tile is a chain of sums that wait for one another, and would keep one warp busy.
    """
    let_next_start(PDL)
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ROW_BYTES: tl.constexpr = IN * weight.dtype.element_ty.primitive_bitwidth // 8
    ask_for_weights(weight, norm, column, OUT, ROW_BYTES, IN, ACTIVATION is not None, BLOCK_N, PDL)
    if scales is not None:
        ask_for_rows(scales, column, OUT, 4, 32, PDL)
        if ACTIVATION is not None:
            ask_for_rows(scales, OUT + column, 2 * OUT, 4, 32, PDL)
    wait(PDL)
    of_slice = tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    in_x = row < num_rows
    in_out = column < OUT
    sums = tl.zeros([SLICES, BLOCK_M, BLOCK_N], tl.float32)
    other_sums = tl.zeros([SLICES, BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([SLICES, BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, IN, SLICES * BLOCK_K):
        inner = start + of_slice
        place = row[None, :, None] * IN + inner[:, None, :]
        values = tl.load(x + place, mask=in_x[None, :, None] & (inner < IN)[:, None, :], other=0.0)
        if norm is not None:
            wide = values.to(tl.float32)
            squares += wide * wide
            factor = tl.load(norm + inner, mask=inner < IN, other=0.0)
            values = times_norm(values, factor[:, None, :], UNIT_OFFSET)
        sums = add_turn(sums, values, weight, column, in_out, inner, IN)
        if ACTIVATION is not None:
            other_sums = add_turn(other_sums, values, weight, OUT + column, in_out, inner, IN)
    total = tl.sum(sums, axis=0)
    other = tl.sum(other_sums, axis=0)
    if scales is not None:
        x_scale = tl.load(x_scales + row, mask=in_x, other=0.0)[:, None]
        total *= x_scale * tl.load(scales + column, mask=in_out, other=0.0)[None, :]
        if ACTIVATION is not None:
            other *= x_scale * tl.load(scales + OUT + column, mask=in_out, other=0.0)[None, :]
    store_tile(
        total,
        other,
        tl.sum(tl.sum(squares, axis=2), axis=0),
        norm,
        bias,
        residual,
        out,
        row,
        column,
        num_rows,
        eps,
        OUT,
        IN,
        ACTIVATION,
    )


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    activation: Activation | None,
    norm: RowNorm | None,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """``out = norm(x) @ weight.T + bias + residual``, or ``activation(gate) * value``, summed in fp32.

    Rows are rounded after the product with the norm's weight, and not when they are divided by the root of their mean
    square, which is done to the sums. In fp16 the product may overflow, so there is no norm then.

    Args:
        x: ``[n, in_features]``, at most ``MOST_ROWS`` rows, one of ``FLOATS``; or e4m3, as the weight then.
        weight: ``[out_features, in_features]``, with an ``activation`` gate above value.
        bias: ``[out_features]`` or None.
        residual: of the shape of ``out``, or None; not with an ``activation``.
        out: ``[n, out_features]``, with an ``activation`` ``[n, out_features / 2]``. All are contiguous.
        activation: of the gate, or None.
        norm: what rows go through first, or None.
        scales: of e4m3, what an entry of each row of ``x`` and of the weight is times: fp32 ``[n]`` and
            ``[out_features, 1]``. There is no norm then.
    """
    x_scales, weight_scales = scales or (None, None)
    num_rows, out_features = out.shape
    choice = TILES.choose(x.device, **class_of(out_features, x.dtype, activation))
    few_rows.launch(
        (triton.cdiv(out_features, choice["BLOCK_N"]),),
        x,
        x_scales,
        None if norm is None else norm.weight,
        weight,
        weight_scales,
        bias,
        residual,
        out,
        num_rows,
        0.0 if norm is None else norm.eps,
        OUT=out_features,
        IN=x.shape[1],
        UNIT_OFFSET=norm is not None and norm.unit_offset,
        ACTIVATION=activation,
        BLOCK_M=MOST_ROWS,
        SLICES=choice["num_warps"],
        **choice,
    )


TURNS = {16: (64, 5), 32: (64, 4), 64: (64, 3), 128: (32, 3)}
"""Rows of the weight in a tile -> columns of 16 bits of a warp's turn, and stages: 32 KiB and more are under way."""


def _rule(out: int, x_bits: int, gated: int) -> Choice:
    # A program for each few columns, so that small weights are read by many multiprocessors. Each program reads all of
    # x, too, which is as much as 16 rows of the weight, and should have more than that where there are enough.
    block_n = min(max(out // 128, 16), 64)
    columns, num_stages = TURNS[block_n * (1 + gated)]
    return {"BLOCK_N": block_n, "BLOCK_K": columns * 16 // x_bits, "num_warps": 4, "num_stages": num_stages}


def _candidates(out: int, x_bits: int, gated: int) -> dict[str, tuple[int, ...]]:
    return {
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_K": tuple(bits // x_bits for bits in (512, 1024, 2048)),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6, 8),
    }


def _work(out: int, x_bits: int, gated: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int) -> Work:
    columns = BLOCK_N * (1 + gated)
    return Work("memory", MOST_ROWS * columns, (MOST_ROWS + columns) * num_warps * BLOCK_K * x_bits // 8)


def _compiled(family: str) -> Iterator[tuple[Projection, torch.dtype, dict[str, str | None]]]:
    """Projections, types of activations, and those of tensor arguments."""
    for each, dtype, types in compiled_types():
        if types["norm"] is None or dtype != torch.float16:
            yield each, dtype, {**types, "x_scales": None, "scales": None}
            if family != "sm_80" and types["norm"] is None and dtype != torch.float32 and not each.head:
                entries = dict.fromkeys(("x", "weight"), pointer(torch.float8_e4m3fn))
                yield each, torch.float8_e4m3fn, {**types, **entries, "x_scales": "*fp32", "scales": "*fp32"}


def _classes(family: str) -> list[ShapeClass]:
    found = [class_of(each.out_features, dtype, each.activation) for each, dtype, _ in _compiled(family)]
    return [dict(values) for values in sorted({tuple(each.items()) for each in found})]


TILES = Tunable("few_rows_kernel", FIELDS, _rule, _candidates, _classes, _work)


def _configurations(family: str) -> list[Configuration]:
    found = []
    for each, dtype, types in _compiled(family):
        choice = TILES.choose(family, **class_of(each.out_features, dtype, each.activation))
        constants = {
            "OUT": each.out_features,
            "IN": each.in_features,
            "UNIT_OFFSET": types["norm"] is not None and each.plus_one,
            "ACTIVATION": each.activation,
            "BLOCK_M": MOST_ROWS,
            "BLOCK_N": choice["BLOCK_N"],
            "BLOCK_K": choice["BLOCK_K"],
            "SLICES": choice["num_warps"],
        }
        kinds = {**types, "num_rows": "i32", "eps": "fp32"}
        found.append(Configuration(kinds, constants, choice["num_warps"], choice["num_stages"]))
    return found


few_rows = Kernel(few_rows_kernel, _configurations)
