"""Products of few rows by weights of 16 and 32 bits: the projections of a decode step with few sequences.

Whoever computes them, they take as long as reading the weight does. What can be saved is the kernels around them, each
of which takes a microsecond or two: norm, bias, residual and gate are part of the product here.
"""

import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.triton.activation import apply_gate
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work

MOST_ROWS = 16
"""As many as a product of Ampere's and Hopper's tensor cores has in any case. More are left to cuBLAS."""


@triton.jit
def add_turn(total, values, weight, column, present, inner, IN: tl.constexpr):
    """``total`` and one turn's ``values [BLOCK_M, BLOCK_K]`` by columns ``inner`` of rows ``column`` of the weight."""
    entries = tl.load(
        weight + column[None, :].to(tl.int64) * IN + inner[:, None],
        mask=present[None, :] & (inner < IN)[:, None],
        other=0.0,
    )
    return tl.dot(values, entries, total, input_precision="ieee")


@triton.jit(do_not_specialize=["num_rows"])
def few_rows_kernel(
    x,
    norm,
    weight,
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
):
    """BLOCK_N columns of ``out [num_rows, OUT]``, at most BLOCK_M rows: ``x [num_rows, IN]`` by rows of the weight.

    With an ACTIVATION the weight has ``2 * OUT`` rows, the gate's above the value's, and ``bias`` as many entries. With
    a ``norm [IN]`` rows of ``x`` are multiplied by it first, and sums divided by the root of their row's mean square.
    """
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_x = row < num_rows
    in_out = column < OUT
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    other = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, IN, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        values = tl.load(x + row[:, None] * IN + inner[None, :], mask=in_x[:, None] & (inner < IN)[None, :], other=0.0)
        if norm is not None:
            wide = values.to(tl.float32)
            squares += wide * wide
            factor = tl.load(norm + inner, mask=inner < IN, other=0.0).to(tl.float32)
            if UNIT_OFFSET:
                factor += 1.0
            values = (wide * factor[None, :]).to(x.dtype.element_ty)
        total = add_turn(total, values, weight, column, in_out, inner, IN)
        if ACTIVATION is not None:
            other = add_turn(other, values, weight, OUT + column, in_out, inner, IN)
    if norm is not None:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / IN + eps)
        total *= scale[:, None]
        other *= scale[:, None]
    if bias is not None:
        total += tl.load(bias + column, mask=in_out, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION is not None:
            other += tl.load(bias + OUT + column, mask=in_out, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION is not None:
        total = apply_gate(total, other, ACTIVATION)
    place = row[:, None].to(tl.int64) * OUT + column[None, :]
    present = in_x[:, None] & in_out[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=present)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype,
    *,
    activation: Activation | None = None,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    """``norm(x) @ weight.T + bias + residual``, or ``activation(gate) * value``, summed in fp32 and rounded once.

    Args:
        x: ``[n, in_features]``, at most ``MOST_ROWS`` rows, one of ``FLOATS``.
        weight: ``[out_features, in_features]``, contiguous; with an ``activation`` gate above value.
        bias: ``[out_features]`` or None.
        residual: of the result's shape, or None; not with an ``activation``.
        out_dtype: of the result: ``[n, out_features]``, with an ``activation`` ``[n, out_features / 2]``.
        norm: what ``takes_norm`` allows. Rows are rounded after the product with its weight, and not when they are
            divided by the root of their mean square, which is done to the sums.
    """
    out_features, in_features = weight.shape
    if activation is not None:
        out_features //= 2
    out = x.new_empty(len(x), out_features, dtype=out_dtype)
    choice = choose(x.device, len(x), out_features, x.dtype, activation)
    few_rows.launch(
        (triton.cdiv(out_features, choice["BLOCK_N"]),),
        x.contiguous(),
        None if norm is None else norm.weight.contiguous(),
        weight,
        None if bias is None else bias.contiguous(),
        None if residual is None else residual.contiguous(),
        out,
        len(x),
        0.0 if norm is None else norm.eps,
        OUT=out_features,
        IN=in_features,
        UNIT_OFFSET=norm is not None and norm.unit_offset,
        ACTIVATION=activation,
        **choice,
    )
    return out


def takes(x: torch.Tensor) -> bool:
    """Whether these activations ``[n, in_features]`` are few enough, and of a type that kernels take."""
    return len(x) <= MOST_ROWS and x.dtype in FLOATS


def takes_norm(x: torch.Tensor) -> bool:
    """The same of activations that are to be normalised. In fp16 their products with the norm's weight may overflow."""
    return takes(x) and x.dtype != torch.float16


def choose(
    where: Where, num_rows: int, out_features: int, dtype: torch.dtype, activation: Activation | None
) -> dict[str, int]:
    """Tile, warps and stages of a launch, on a device or for a family. ``out_features`` are the result's columns."""
    rows = 1 if num_rows == 1 else MOST_ROWS
    gated = int(activation is not None)
    choice = TILES.choose(where, rows=rows, out=_class_of(out_features), x_bits=8 * dtype.itemsize, gated=gated)
    return {"BLOCK_M": rows, **choice}


SMALLEST, LARGEST = 1024, 65536
"""Classes of columns of the result: powers of two from here to here."""
TURNS = {8: (512, 5), 16: (256, 5), 32: (256, 4), 64: (256, 3), 128: (128, 3)}
"""Rows of the weight in a tile -> columns of 16 bits in a turn, and stages: 32 KiB of it and more are under way."""


def _class_of(out_features: int) -> int:
    return min(power_of_two(out_features, SMALLEST), LARGEST)


def _rule(rows: int, out: int, x_bits: int, gated: int) -> Choice:
    # A program for each few columns, so that small weights are read by all multiprocessors. Each program reads all of
    # x, too: of many rows that is as much as its part of the weight, and it should have more columns.
    least, most_programs = (8, 512) if rows == 1 else (16, 256)
    block_n = min(max(out // most_programs, least), 64)
    columns, num_stages = TURNS[block_n * (2 if gated else 1)]
    # A warp multiplies by eight rows of the weight; further ones would do the same again.
    num_warps = min(block_n // 8, 4)
    return {"BLOCK_N": block_n, "BLOCK_K": columns * 16 // x_bits, "num_warps": num_warps, "num_stages": num_stages}


def _candidates(rows: int, out: int, x_bits: int, gated: int) -> dict[str, tuple[int, ...]]:
    return {
        "BLOCK_N": (8, 16, 32, 64, 128),
        "BLOCK_K": tuple(bits // x_bits for bits in (1024, 2048, 4096, 8192)),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6, 8),
    }


def _work(
    rows: int, out: int, x_bits: int, gated: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int
) -> Work:
    columns = BLOCK_N * (2 if gated else 1)
    return Work("memory", rows * columns, (rows + columns) * BLOCK_K * x_bits // 8)


@dataclass(frozen=True, slots=True)
class Projection:
    """Of a model: columns of its result and of activations, and what comes with them.

    ``norm``: activations are normalised first, ``plus_one`` by weights that count from 1. ``residual`` is added.
    ``head``: the result is fp32.
    """

    out_features: int
    in_features: int
    activation: Activation | None = None
    norm: bool = False
    plus_one: bool = False
    residual: bool = False
    head: bool = False


PROJECTIONS = (
    # Qwen 3 0.6B
    Projection(4096, 1024, norm=True),
    Projection(1024, 2048, residual=True),
    Projection(3072, 1024, "silu", norm=True),
    Projection(1024, 3072, residual=True),
    Projection(151936, 1024, head=True),
    # Llama 8B
    Projection(6144, 4096, norm=True),
    Projection(4096, 4096, residual=True),
    Projection(14336, 4096, "silu", norm=True),
    Projection(4096, 14336, residual=True),
    Projection(128256, 4096, head=True),
    # Gemma 2 2B
    Projection(4096, 2304, norm=True, plus_one=True),
    Projection(2304, 2048),
    Projection(9216, 2304, "gelu_tanh"),
    # gpt-oss, and others' activation
    Projection(2880, 2880, "swigluoai", norm=True),
    Projection(3072, 1024, "gelu", norm=True),
)
_FIELDS = ("rows", "out", "x_bits", "gated")


def _classes(family: str) -> list[ShapeClass]:
    found = {
        (rows, _class_of(each.out_features), 8 * dtype.itemsize, int(each.activation is not None))
        for each in PROJECTIONS
        for dtype in FLOATS
        for rows in (1, MOST_ROWS)
    }
    return [dict(zip(_FIELDS, values, strict=True)) for values in sorted(found)]


TILES = Tunable("few_rows_kernel", _FIELDS, _rule, _candidates, _classes, _work)


def _configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        kind = pointer(dtype)
        for each in PROJECTIONS:
            norms = (False, True) if each.norm and dtype != torch.float16 else (False,)
            for num_rows, normed, biased in itertools.product((1, MOST_ROWS), norms, (False, True)):
                choice = choose(family, num_rows, each.out_features, dtype, each.activation)
                types: dict[str, str | None] = {
                    "x": kind,
                    "norm": kind if normed else None,
                    "weight": kind,
                    "bias": kind if biased else None,
                    "residual": kind if each.residual else None,
                    "out": "*fp32" if each.head else kind,
                    "num_rows": "i32",
                    "eps": "fp32",
                }
                constants = {
                    "OUT": each.out_features,
                    "IN": each.in_features,
                    "UNIT_OFFSET": normed and each.plus_one,
                    "ACTIVATION": each.activation,
                    **{name: choice[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")},
                }
                found.append(Configuration(types, constants, choice["num_warps"], choice["num_stages"]))
    return found


few_rows = Kernel(few_rows_kernel, _configurations)
