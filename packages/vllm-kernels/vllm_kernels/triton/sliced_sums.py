"""Sums of a tile of few rows by weights of 4 bits: each warp has a slice of the columns. For kernels to call.

Warps that share a tile's rows of the weight instead have fewer of these each, and all the activations; and with few
rows a tile is a chain of sums that wait for one another, of which a warp of its own slice has more than one.
"""

import triton
import triton.language as tl

from vllm_kernels.triton.quantized_sums import entries_of_words, zero_and_scale
from vllm_kernels.triton.words import byte_of_rows, without_effect

MOST_SLICED = 16
"""Rows of a tile at most."""


@triton.jit
def places_of_turn(turn, IN: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr):
    """Where the slices of a turn are: each has a piece of at most BLOCK_K columns, of one group.

    ``group [SLICES]``, columns ``inner [SLICES, BLOCK_K]`` and whether they are ``present``, and words of eight columns
    ``[SLICES, BLOCK_K / 8]``: where a group ends within a piece, these are the next group's, for columns that are not.
    """
    PIECES: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    piece = turn * SLICES + tl.arange(0, SLICES)
    group = piece // PIECES
    in_group = piece % PIECES * BLOCK_K
    start = group * GROUP + in_group
    column = tl.arange(0, BLOCK_K)[None, :]
    inner = start[:, None] + column
    present = inner < IN
    if GROUP % BLOCK_K != 0:
        present = present & (in_group[:, None] + column < GROUP)
    word = start[:, None] // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    return group, inner, present, word


@triton.jit
def sums_of_turn(
    values,
    weight,
    scales,
    column,
    in_weight,
    word,
    group,
    byte,
    x,
    WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """fp32 ``[SLICES, BLOCK_N, BLOCK_M]``: columns of rows of the weight by ``values [SLICES, BLOCK_K, BLOCK_M]``.

    ``word`` and ``group``: see ``places_of_turn``. WORDS: of a row.
    """
    row = weight.to(tl.pointer_type(tl.uint32)) + column[None, :, None].to(tl.int64) * WORDS
    words = tl.load(row + word[:, None, :], mask=in_weight[None, :, None] & (word < WORDS)[:, None, :], other=0)
    words = words | without_effect(byte[None, :, None])
    present = in_weight[None, :] & (group < GROUPS)[:, None]
    zero, scale = zero_and_scale(scales, column[None, :].to(tl.int64) * GROUPS + group[:, None], present, x)
    zero = tl.broadcast_to(zero[:, :, None], [SLICES, BLOCK_N, BLOCK_K // 8])
    entries = entries_of_words(
        tl.reshape(words, [SLICES * BLOCK_N, BLOCK_K // 8]),
        tl.reshape(zero, [SLICES * BLOCK_N, BLOCK_K // 8]),
        x,
        SLICES * BLOCK_N,
        BLOCK_K,
    )
    sums = tl.dot(tl.reshape(entries, [SLICES, BLOCK_N, BLOCK_K]), values, input_precision="ieee")
    return sums * scale[:, :, None]


@triton.jit
def sliced_sum_of_weights_only(
    x_row,
    in_x,
    weight,
    scales,
    column,
    in_weight,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
):
    """As ``quantized_sums.sum_of_weights_only`` of 4 bits, over all turns: fp32 ``[BLOCK_M, BLOCK_N]``."""
    PIECES: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    byte = byte_of_rows(weight, BLOCK_N)
    sums = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    for turn in range((GROUPS * PIECES + SLICES - 1) // SLICES):
        group, inner, present, word = places_of_turn(turn, IN, GROUP, BLOCK_K, SLICES)
        place = x_row[None, None, :] + inner[:, :, None]
        values = tl.load(place, mask=in_x[None, None, :] & present[:, :, None], other=0.0)
        sums += sums_of_turn(
            values,
            weight,
            scales,
            column,
            in_weight,
            word,
            group,
            byte,
            x_row,
            (IN + 7) // 8,
            GROUPS,
            SLICES,
            BLOCK_N,
            BLOCK_K,
        )
    return tl.trans(tl.sum(sums, axis=0))
