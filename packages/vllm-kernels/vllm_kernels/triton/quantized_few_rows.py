"""Products of few rows by weights of 4 bits, activations as they are: the projections of a decode step.

As in ``few_rows``, norm, bias, residual and gate are part of the product, and each warp has a slice of the columns. So
a small weight keeps many programs busy without parts of its columns, which a kernel of its own would have to add.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.triton.dependent_launch import ask_for_rows, ask_for_weights, let_next_start, wait
from vllm_kernels.triton.few_rows import MOST_ROWS, store_tile, times_norm
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.projection_shapes import FIELDS, Projection, class_of, compiled_types
from vllm_kernels.triton.quantized_sums import span_of
from vllm_kernels.triton.sliced_sums import places_of_turn, sums_of_turn
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Work
from vllm_kernels.triton.words import byte_of_rows

GROUPS_COMPILED = (128, 64, 32)
"""Columns of a group for which products are compiled ahead of time."""


@triton.jit(do_not_specialize=["num_rows"])
def quantized_few_rows_kernel(
    x,
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
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_N columns of ``out [num_rows, OUT]``, see ``few_rows_kernel``; ``weight`` and ``scales`` as in ``words``.

    A turn goes over SLICES pieces of the columns (``sliced_sums``). The weight is the left operand of products, see
    ``sum_of_weights_only``.
    """
    let_next_start(PDL)
    WORDS: tl.constexpr = (IN + 7) // 8
    PIECES: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    TURNS: tl.constexpr = (GROUPS * PIECES + SLICES - 1) // SLICES
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ask_for_weights(weight, norm, column, OUT, 4 * WORDS, IN, ACTIVATION is not None, BLOCK_N, PDL)
    ask_for_rows(scales, column, OUT, 4 * GROUPS, 128, PDL)
    if ACTIVATION is not None:
        ask_for_rows(scales, OUT + column, 2 * OUT, 4 * GROUPS, 128, PDL)
    wait(PDL)
    in_x = row < num_rows
    in_out = column < OUT
    byte = byte_of_rows(weight, BLOCK_N)
    sums = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    other_sums = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([SLICES, BLOCK_K, BLOCK_M], tl.float32)
    for turn in range(TURNS):
        group, inner, present, word = places_of_turn(turn, IN, GROUP, BLOCK_K, SLICES)
        place = row[None, None, :] * IN + inner[:, :, None]
        values = tl.load(x + place, mask=in_x[None, None, :] & present[:, :, None], other=0.0)
        if norm is not None:
            wide = values.to(tl.float32)
            squares += wide * wide
            factor = tl.load(norm + inner, mask=present, other=0.0)
            values = times_norm(values, factor[:, :, None], UNIT_OFFSET)
        sums += sums_of_turn(
            values, weight, scales, column, in_out, word, group, byte, x, WORDS, GROUPS, SLICES, BLOCK_N, BLOCK_K
        )
        if ACTIVATION is not None:
            below = OUT + column
            other_sums += sums_of_turn(
                values, weight, scales, below, in_out, word, group, byte, x, WORDS, GROUPS, SLICES, BLOCK_N, BLOCK_K
            )
    store_tile(
        tl.trans(tl.sum(sums, axis=0)),
        tl.trans(tl.sum(other_sums, axis=0)),
        tl.sum(tl.sum(squares, axis=1), axis=0),
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


def serves(num_rows: int) -> bool:
    """Whether these rows are this kernel's: not where a result must be the same in any batch."""
    return num_rows <= MOST_ROWS and not batch_invariance.enabled()


def rows_of_tile(num_rows: int) -> int:
    """Of activations: eight are the fewest that tensor cores multiply, and a warp has less to do with eight than 16."""
    return 8 if num_rows <= 8 else MOST_ROWS


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    activation: Activation | None,
    norm: RowNorm | None,
) -> None:
    """``out = norm(x) @ entries.T + bias + residual``, or ``activation(gate) * value``: as ``few_rows.multiply``.

    Args:
        x, bias, residual, out, activation, norm: as there.
        weight: ``words``, uint8 ``[out_features, ..]``, with an ``activation`` gate above value.
        scales: with their zeros, int32 ``[out_features, groups]``.
        group: columns that share a scale.
    """
    num_rows, out_features = out.shape
    in_features = x.shape[1]
    choice = TILES.choose(x.device, **quantized_class_of(num_rows, out_features, group, x.dtype, activation))
    quantized_few_rows.launch(
        (triton.cdiv(out_features, choice["BLOCK_N"]),),
        x,
        None if norm is None else norm.weight,
        weight,
        scales,
        bias,
        residual,
        out,
        num_rows,
        0.0 if norm is None else norm.eps,
        OUT=out_features,
        IN=in_features,
        GROUP=group,
        GROUPS=scales.shape[1],
        UNIT_OFFSET=norm is not None and norm.unit_offset,
        ACTIVATION=activation,
        BLOCK_M=rows_of_tile(num_rows),
        SLICES=choice["num_warps"],
        **choice,
    )


def quantized_class_of(
    num_rows: int, out_features: int, group: int, dtype: torch.dtype, activation: Activation | None
) -> dict[str, int]:
    """``class_of``, rows of a tile, and ``span``, the most columns of a piece: see ``span_of``."""
    rows = rows_of_tile(num_rows)
    return {**class_of(out_features, dtype, activation), "rows": rows, "span": span_of(group, 4, False)}


def _rule(out: int, x_bits: int, gated: int, rows: int, span: int) -> Choice:
    # As in ``few_rows``; but the activations of a turn have four times as many bytes as as many rows of the weight.
    block_n = min(max(out // 128, 16), 32)
    return {
        "BLOCK_N": block_n,
        "BLOCK_K": max(span * 16 // x_bits, 32),
        "num_warps": 4,
        "num_stages": 5 if block_n * (1 + gated) <= 32 else 4,
    }


def _candidates(out: int, x_bits: int, gated: int, rows: int, span: int) -> dict[str, tuple[int, ...]]:
    return {
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_K": tuple(size for size in (32, 64, 128) if size <= span),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6, 8),
    }


def _work(
    out: int,
    x_bits: int,
    gated: int,
    rows: int,
    span: int,
    BLOCK_N: int,
    BLOCK_K: int,
    num_warps: int,
    num_stages: int,
) -> Work:
    columns = BLOCK_N * (1 + gated)
    return Work("memory", rows * columns, (rows * x_bits + columns * 4) * num_warps * BLOCK_K // 8)


def _compiled() -> Iterator[tuple[dict[str, int], Projection, dict[str, str | None], int]]:
    """The class of a product, the projection, types of tensors and columns of a group of all that is compiled."""
    for each, dtype, types in compiled_types():
        if not each.head and dtype != torch.float32 and (types["norm"] is None or dtype != torch.float16):
            for rows, group in itertools.product((8, MOST_ROWS), GROUPS_COMPILED):
                yield quantized_class_of(rows, each.out_features, group, dtype, each.activation), each, types, group


def _classes(family: str) -> list[ShapeClass]:
    return [dict(values) for values in sorted({tuple(shape_class.items()) for shape_class, *_ in _compiled()})]


TILES = Tunable("quantized_few_rows_kernel", (*FIELDS, "rows", "span"), _rule, _candidates, _classes, _work)


def _configurations(family: str) -> list[Configuration]:
    found = []
    for shape_class, each, types, group in _compiled():
        choice = TILES.choose(family, **shape_class)
        constants = {
            "OUT": each.out_features,
            "IN": each.in_features,
            "GROUP": group,
            "GROUPS": -(-each.in_features // group),
            "UNIT_OFFSET": types["norm"] is not None and each.plus_one,
            "ACTIVATION": each.activation,
            "BLOCK_M": shape_class["rows"],
            "BLOCK_N": choice["BLOCK_N"],
            "BLOCK_K": choice["BLOCK_K"],
            "SLICES": choice["num_warps"],
        }
        kinds = {**types, "weight": "*u8", "scales": "*i32", "num_rows": "i32", "eps": "fp32"}
        found.append(Configuration(kinds, constants, choice["num_warps"], choice["num_stages"]))
    return found


quantized_few_rows = Kernel(quantized_few_rows_kernel, _configurations)
