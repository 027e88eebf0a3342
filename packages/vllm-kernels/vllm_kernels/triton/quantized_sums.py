"""Sums of a tile along the columns: activations by weights of 8 or 4 bits. For kernels to call."""

import triton
import triton.language as tl

from vllm_kernels.triton import words as order_of_words
from vllm_kernels.triton.device import family_of
from vllm_kernels.triton.kernel import power_of_two
from vllm_kernels.triton.tuning import Where
from vllm_kernels.triton.words import byte_of_rows, in_order, without_effect

LOWEST = tl.constexpr(order_of_words.LOWEST)
OF_1024 = tl.constexpr(0x6400)
"""The bits of 1024 in half precision: small integers among the lowest bits are added to it."""
OF_128 = tl.constexpr(0x4300)
"""The bits of 128 in bfloat16, the same."""


def span_of(columns: int, bits: int, by_bytes: bool) -> int:
    """The most columns of a turn of the loop where ``columns`` share scales: a power of two up to 128.

    A product of bytes takes at least 32 columns, and two halves of them with 4 bits. One of 16 bits takes 16.
    """
    return min(power_of_two(columns, 64 if bits == 4 and by_bytes else 32), 128)


def bytes_of_row(columns: int, bits: int) -> int:
    """Of a row of the weight that meets bytes. Of 4 bits it is whole words, two columns a byte, the even one below."""
    return -(-columns // 8) * 4 if bits == 4 else columns


def takes_in_order(block_m: int, where: Where) -> bool:
    """Whether products should have entries of 4 bits, but ``words``, in order: from Hopper on, tiles of 64 rows
    and more are multiplied by instructions that read them from shared memory.
    """
    return block_m >= 64 and (where if isinstance(where, str) else family_of(where)) != "sm_80"


@triton.jit
def group_value(table, column, group, present, GROUPS: tl.constexpr):
    """Of the rows ``column`` of the weight: their entry of one group, as fp32 ``[BLOCK_N]``."""
    return tl.load(table + column.to(tl.int64) * GROUPS + group, mask=present, other=0).to(tl.float32)


@triton.jit
def zero_and_scale(table, place, present, x):
    """Entries ``place`` of a table of ``words.with_zeros``: zeros, as ``two_columns`` subtracts them, and scales."""
    both = tl.load(table + place, mask=present, other=0)
    scale = (both & ~LOWEST).to(tl.float32, bitcast=True)
    zero = both & LOWEST
    if x.dtype.element_ty == tl.float32:
        number = zero.to(tl.float32)
    elif x.dtype.element_ty == tl.float16:
        number = (zero | OF_1024).to(tl.uint16).to(tl.float16, bitcast=True)
    else:
        number = (zero | OF_128).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return number, scale


@triton.jit
def two_columns(words, zero, x, NUMBER: tl.constexpr):
    """Entries NUMBER of the lower and of the upper half of each word, less ``zero``, in the type ``x`` points to.

    Of 16 bits, both are made at once: an integer among the lowest bits of 1024 (or 128) is added to it, and one
    subtraction, which is exact, takes that away again together with the zero. The upper one comes first, as the
    assembler packs two subtractions that way round without moving halves about.
    """
    two = (words >> (4 * NUMBER)) & 0x000F000F
    if x.dtype.element_ty == tl.float32:
        upper = (two >> 16).to(tl.int32).to(tl.float32) - zero
        lower = (two & 0xFFFF).to(tl.int32).to(tl.float32) - zero
    elif x.dtype.element_ty == tl.float16:
        two = two | (OF_1024 * 0x10001)
        upper = (two >> 16).to(tl.uint16).to(tl.float16, bitcast=True) - zero
        lower = (two & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True) - zero
    else:
        two = two | (OF_128 * 0x10001)
        upper = (two >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True) - zero
        lower = (two & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True) - zero
    return lower, upper


@triton.jit
def entries_of_words(words, zero, x, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``words [BLOCK_N, BLOCK_K / 8]`` -> their columns less ``zero``, ``[BLOCK_N, BLOCK_K]``, in the type of ``x``."""
    lower_0, upper_0 = two_columns(words, zero, x, 0)
    lower_1, upper_1 = two_columns(words, zero, x, 1)
    lower_2, upper_2 = two_columns(words, zero, x, 2)
    lower_3, upper_3 = two_columns(words, zero, x, 3)
    return in_order(lower_0, upper_0, lower_1, upper_1, lower_2, upper_2, lower_3, upper_3, BLOCK_N, BLOCK_K)


@triton.jit
def sum_of_weights_only(
    x_row,
    in_x,
    weight,
    scales,
    zeros,
    column,
    in_weight,
    first,
    last,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of fp32 sums: rows at ``x_row`` (pointers ``[BLOCK_M]``) by the rows ``column`` of the weight.

    Entries become numbers of the type of ``x``, and are multiplied as such. The loop goes group by group in turns of
    BLOCK_K columns, here those from ``first`` to ``last``, so that a turn has one scale for each row of the weight,
    which its sum is multiplied by. Rows of 4 bits are ``words``, and ``scales`` has their zeros, too.

    The weight is the left operand, which tensor cores take from registers, where its entries are made; activations are
    the right one, which they take as memory has it.
    """
    WORDS: tl.constexpr = (IN + 7) // 8
    TURNS: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    # Only where turns may end early, columns are masked: what is loaded by whole vectors is prefetched.
    WHOLE: tl.constexpr = GROUP % BLOCK_K == 0 and IN % GROUP == 0
    result = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    place = tl.arange(0, BLOCK_K)
    if BITS == 4:
        byte = byte_of_rows(weight, BLOCK_N)
    elif GROUPS == 1:
        zero_of_row = group_value(zeros, column, 0, in_weight, GROUPS)
        scale_of_row = group_value(scales, column, 0, in_weight, GROUPS)
    for turn in range(first, last):
        group = turn // TURNS
        start = group * GROUP + (turn % TURNS) * BLOCK_K
        left = GROUP - (turn % TURNS) * BLOCK_K
        if IN % GROUP != 0:
            left = tl.minimum(left, IN - start)
        x_place = x_row[None, :] + (start + place)[:, None]
        if WHOLE:
            values = tl.load(x_place, mask=in_x[None, :], other=0.0)
        else:
            values = tl.load(x_place, mask=in_x[None, :] & (place < left)[:, None], other=0.0)
        if BITS == 8:
            weight_place = weight + column[:, None].to(tl.int64) * IN + (start + place)[None, :]
            if WHOLE:
                entries = tl.load(weight_place, mask=in_weight[:, None], other=0)
            else:
                entries = tl.load(weight_place, mask=(place < left)[None, :] & in_weight[:, None], other=0)
            if GROUPS == 1:
                zero, scale = zero_of_row, scale_of_row
            else:
                zero = group_value(zeros, column, group, in_weight, GROUPS)
                scale = group_value(scales, column, group, in_weight, GROUPS)
            w = (entries.to(tl.float32) - zero[:, None]).to(x_row.dtype.element_ty)
        else:
            row = weight.to(tl.pointer_type(tl.uint32)) + column[:, None].to(tl.int64) * WORDS
            word = start // 8 + tl.arange(0, BLOCK_K // 8)
            # Words of the next group meet activations that are 0.
            if WHOLE:
                words = tl.load(row + word[None, :], mask=in_weight[:, None], other=0)
            else:
                words = tl.load(row + word[None, :], mask=(word < WORDS)[None, :] & in_weight[:, None], other=0)
            zero, scale = zero_and_scale(scales, column.to(tl.int64) * GROUPS + group, in_weight, x_row)
            words = words | without_effect(byte[:, None])
            w = entries_of_words(words, zero[:, None], x_row, BLOCK_N, BLOCK_K)
        result += tl.dot(w, values, input_precision="ieee") * scale[:, None]
    return tl.trans(result)


@triton.jit
def add_product_of_bytes(
    total,
    q_place,
    in_x,
    weight_row,
    in_weight,
    start,
    left,
    WHOLE: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """``total``, int32 ``[BLOCK_M, BLOCK_N]``, and the sums of one turn: BLOCK_K columns from ``start``, or, without
    WHOLE, ``left`` where those are fewer.

    ``q_place``, ``weight_row``: pointers ``[BLOCK_M, 1]`` and ``[1, BLOCK_N]``. Entries of 8 bits count less 128. Those
    outside are not 0 then, but meet activations that are, or make sums of rows that are nobody's.
    """
    place = tl.arange(0, BLOCK_K)
    if WHOLE:
        values = tl.load(q_place + (start + place)[None, :], mask=in_x[:, None], other=0)
    else:
        values = tl.load(q_place + (start + place)[None, :], mask=in_x[:, None] & (place < left)[None, :], other=0)
    if BITS == 8:
        if WHOLE:
            entries = tl.load(weight_row + (start + place)[:, None], mask=in_weight[None, :], other=0)
        else:
            entries = tl.load(
                weight_row + (start + place)[:, None], mask=(place < left)[:, None] & in_weight[None, :], other=0
            )
        total = tl.dot(values, (entries ^ 128).to(tl.int8, bitcast=True), total, out_dtype=tl.int32)
    else:
        byte = tl.arange(0, BLOCK_K // 2)
        if WHOLE:
            two = tl.load(weight_row + (start // 2 + byte)[:, None], mask=in_weight[None, :], other=0)
        else:
            two = tl.load(
                weight_row + (start // 2 + byte)[:, None],
                mask=(2 * byte < left)[:, None] & in_weight[None, :],
                other=0,
            )
        lower = (two & 15).to(tl.int8, bitcast=True)
        upper = (two >> 4).to(tl.int8, bitcast=True)
        if IN_ORDER:
            entries = tl.reshape(tl.permute(tl.join(lower, upper), (0, 2, 1)), [BLOCK_K, BLOCK_N])
            total = tl.dot(values, entries, total, out_dtype=tl.int32)
        else:
            evens, odds = tl.split(tl.reshape(values, [BLOCK_M, BLOCK_K // 2, 2]))
            total = tl.dot(evens, lower, total, out_dtype=tl.int32)
            total = tl.dot(odds, upper, total, out_dtype=tl.int32)
    return total


@triton.jit
def sum_of_bytes(
    q,
    x_scales,
    x_sums,
    row,
    in_x,
    weight,
    scales,
    zeros,
    column,
    in_weight,
    first_group,
    last_group,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X_GROUP: tl.constexpr,
    X_GROUPS: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """A tile of fp32 sums: the rows ``row`` of rounded activations by the rows ``column`` of the weight.

    Sums of a group of activations are exact integers; the groups from ``first_group`` to ``last_group`` are added in
    fp32, in order. ``sum(x_q (q - zero)) = sum(x_q (q - c)) + (c - zero) sum(x_q)``, where ``q - c`` is a signed byte.
    ``IN_ORDER``: see ``takes_in_order``.
    """
    ROW: tl.constexpr = (IN + 7) // 8 * 4 if BITS == 4 else IN
    CENTRE: tl.constexpr = 128 if BITS == 8 else 0
    WHOLE: tl.constexpr = X_GROUP % BLOCK_K == 0 and IN % X_GROUP == 0
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    q_place = q + row[:, None].to(tl.int64) * IN
    weight_row = weight + column[None, :].to(tl.int64) * ROW
    # One loop: a loop in a loop would begin to prefetch anew for each group.
    TURNS: tl.constexpr = (X_GROUP + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    if GROUPS == 1:
        zero_of_row = group_value(zeros, column, 0, in_weight, GROUPS)
        scale_of_row = group_value(scales, column, 0, in_weight, GROUPS)
    for turn in range(first_group * TURNS, last_group * TURNS):
        x_group = turn // TURNS
        start = x_group * X_GROUP + (turn % TURNS) * BLOCK_K
        left = X_GROUP - (turn % TURNS) * BLOCK_K
        if IN % X_GROUP != 0:
            left = tl.minimum(left, IN - start)
        # What ends a group is asked for before the product, which hides the time that it takes to come.
        ends = turn % TURNS == TURNS - 1
        place = row.to(tl.int64) * X_GROUPS + x_group
        x_sum = tl.load(x_sums + place, mask=in_x & ends, other=0).to(tl.float32)
        x_scale = tl.load(x_scales + place, mask=in_x & ends, other=0.0)
        if GROUPS == 1:
            zero, scale = zero_of_row, scale_of_row
        else:
            group = x_group * X_GROUP // GROUP
            zero = group_value(zeros, column, group, in_weight & ends, GROUPS)
            scale = group_value(scales, column, group, in_weight & ends, GROUPS)
        total = add_product_of_bytes(
            total,
            q_place,
            in_x,
            weight_row,
            in_weight,
            start,
            left,
            WHOLE,
            BITS,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            IN_ORDER,
        )
        if ends:
            # Both below 2^24, so that the sum is exact in fp32.
            exact = total.to(tl.float32) + x_sum[:, None] * (CENTRE - zero)[None, :]
            result += exact * (x_scale[:, None] * scale[None, :])
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    return result
