"""Sums of a tile along the columns: activations by weights of 8 or 4 bits. For kernels to call."""

import triton
import triton.language as tl

from vllm_kernels.triton.device import family_of
from vllm_kernels.triton.kernel import power_of_two
from vllm_kernels.triton.tuning import Where

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
    """Of a row of the weight. Those of 4 bits are whole words: eight columns each, the first in the lowest bits."""
    return -(-columns // 8) * 4 if bits == 4 else columns


def takes_in_order(block_m: int, where: Where) -> bool:
    """Whether ``add_product_of_columns`` should have entries in order: from Hopper on, tiles of 64 rows and more are
    multiplied by instructions that read them from shared memory.
    """
    return block_m >= 64 and (where if isinstance(where, str) else family_of(where)) != "sm_80"


@triton.jit
def group_value(table, column, group, present, GROUPS: tl.constexpr):
    """Of the rows ``column`` of the weight: their entry of one group, as fp32 ``[BLOCK_N]``."""
    return tl.load(table + column.to(tl.int64) * GROUPS + group, mask=present, other=0).to(tl.float32)


@triton.jit
def zero_number(zeros, column, group, present, GROUPS: tl.constexpr, x):
    """Of the rows ``column`` of the weight: their zero of one group, as ``two_columns`` subtracts it, ``[BLOCK_N]``."""
    zero = tl.load(zeros + column.to(tl.int64) * GROUPS + group, mask=present, other=0)
    if x.dtype.element_ty == tl.float32:
        result = zero.to(tl.float32)
    elif x.dtype.element_ty == tl.float16:
        result = (zero.to(tl.uint16) | OF_1024).to(tl.float16, bitcast=True)
    else:
        result = (zero.to(tl.uint16) | OF_128).to(tl.bfloat16, bitcast=True)
    return result


@triton.jit
def two_columns(words, zero, x, NUMBER: tl.constexpr):
    """Columns NUMBER and NUMBER + 4 of the eight of 4 bits in each word, less ``zero``, in the type ``x`` points to.

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
def add_product_of_columns(
    total,
    values,
    lower_0,
    upper_0,
    lower_1,
    upper_1,
    lower_2,
    upper_2,
    lower_3,
    upper_3,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """``total`` and ``values`` ``[BLOCK_M, BLOCK_K]`` by columns 0 (``lower_0``) to 7 (``upper_3``) of the eight in
    each word, ``[BLOCK_K / 8, BLOCK_N]`` each: fp32 sums.

    IN_ORDER: entries are put in the order of columns, for products that take them from shared memory. Otherwise
    the activations are put in that of the entries, so that these stay in the registers that their word was in.
    """
    if IN_ORDER:
        lower = tl.join(tl.join(lower_0, lower_1), tl.join(lower_2, lower_3))
        upper = tl.join(tl.join(upper_0, upper_1), tl.join(upper_2, upper_3))
        # [word, row, bit 0 of the column, bit 1, bit 2]
        entries = tl.reshape(tl.permute(tl.join(lower, upper), (0, 4, 3, 2, 1)), [BLOCK_K, BLOCK_N])
        total = tl.dot(values, entries, total, input_precision="ieee")
    else:
        by_bits = tl.permute(tl.reshape(values, [BLOCK_M, BLOCK_K // 8, 2, 2, 2]), (0, 1, 2, 4, 3))
        first, second = tl.split(by_bits)
        if BLOCK_K == 32:
            total = add_half(total, first, lower_0, upper_0, lower_1, upper_1, BLOCK_M, BLOCK_N, BLOCK_K)
            total = add_half(total, second, lower_2, upper_2, lower_3, upper_3, BLOCK_M, BLOCK_N, BLOCK_K)
        else:
            x_0, x_1 = tl.split(first)
            x_2, x_3 = tl.split(second)
            total = add_quarter(total, x_0, lower_0, upper_0, BLOCK_M, BLOCK_N, BLOCK_K)
            total = add_quarter(total, x_1, lower_1, upper_1, BLOCK_M, BLOCK_N, BLOCK_K)
            total = add_quarter(total, x_2, lower_2, upper_2, BLOCK_M, BLOCK_N, BLOCK_K)
            total = add_quarter(total, x_3, lower_3, upper_3, BLOCK_M, BLOCK_N, BLOCK_K)
    return total


@triton.jit
def add_quarter(total, values, lower, upper, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``total`` and the product of ``values`` ``[BLOCK_M, BLOCK_K / 8, 2]`` by the two columns of each word."""
    entries = tl.reshape(tl.permute(tl.join(lower, upper), (0, 2, 1)), [BLOCK_K // 4, BLOCK_N])
    return tl.dot(tl.reshape(values, [BLOCK_M, BLOCK_K // 4]), entries, total, input_precision="ieee")


@triton.jit
def add_half(
    total,
    values,
    lower_0,
    upper_0,
    lower_1,
    upper_1,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``total`` and the product of ``values`` ``[BLOCK_M, BLOCK_K / 8, 2, 2]`` by four columns of each word: where a
    quarter has less than a product takes.
    """
    four = tl.join(tl.join(lower_0, upper_0), tl.join(lower_1, upper_1))  # [word, row, bit 2 of the column, bit 0]
    entries = tl.reshape(tl.permute(four, (0, 2, 3, 1)), [BLOCK_K // 2, BLOCK_N])
    return tl.dot(tl.reshape(values, [BLOCK_M, BLOCK_K // 2]), entries, total, input_precision="ieee")


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
    IN_ORDER: tl.constexpr,
):
    """A tile of fp32 sums: rows at ``x_row`` (pointers ``[BLOCK_M]``) by the rows ``column`` of the weight.

    Entries become numbers of the type of ``x``, and are multiplied as such. The loop goes group by group in turns of
    BLOCK_K columns, here those from ``first`` to ``last``, so that a turn has one scale for each row of the weight,
    which its sum is multiplied by. Rows of 4 bits are read as words of eight columns. ``IN_ORDER``: see
    ``add_product_of_columns``.
    """
    ROW: tl.constexpr = (IN + 7) // 8 * 4 if BITS == 4 else IN
    TURNS: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    # Only where turns may end early, columns are masked: what is loaded by whole vectors is prefetched.
    WHOLE: tl.constexpr = GROUP % BLOCK_K == 0 and IN % GROUP == 0
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    place = tl.arange(0, BLOCK_K)
    for turn in range(first, last):
        group = turn // TURNS
        start = group * GROUP + (turn % TURNS) * BLOCK_K
        left = GROUP - (turn % TURNS) * BLOCK_K
        if IN % GROUP != 0:
            left = tl.minimum(left, IN - start)
        x_place = x_row[:, None] + (start + place)[None, :]
        if WHOLE:
            values = tl.load(x_place, mask=in_x[:, None], other=0.0)
        else:
            values = tl.load(x_place, mask=in_x[:, None] & (place < left)[None, :], other=0.0)
        if BITS == 8:
            weight_place = weight + column[None, :].to(tl.int64) * ROW + (start + place)[:, None]
            if WHOLE:
                entries = tl.load(weight_place, mask=in_weight[None, :], other=0)
            else:
                entries = tl.load(weight_place, mask=(place < left)[:, None] & in_weight[None, :], other=0)
            zero = group_value(zeros, column, group, in_weight, GROUPS)
            w = (entries.to(tl.float32) - zero[None, :]).to(x_row.dtype.element_ty)
            product = tl.dot(values, w, input_precision="ieee")
        else:
            word = tl.arange(0, BLOCK_K // 8)
            row = weight.to(tl.pointer_type(tl.uint32)) + column[None, :].to(tl.int64) * (ROW // 4)
            word_place = row + (start // 8 + word)[:, None]
            if WHOLE:
                words = tl.load(word_place, mask=in_weight[None, :], other=0)
            else:
                words = tl.load(word_place, mask=(8 * word < left)[:, None] & in_weight[None, :], other=0)
            zero = zero_number(zeros, column, group, in_weight, GROUPS, x_row)
            lower_0, upper_0 = two_columns(words, zero[None, :], x_row, 0)
            lower_1, upper_1 = two_columns(words, zero[None, :], x_row, 1)
            lower_2, upper_2 = two_columns(words, zero[None, :], x_row, 2)
            lower_3, upper_3 = two_columns(words, zero[None, :], x_row, 3)
            product = add_product_of_columns(
                tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
                values,
                lower_0,
                upper_0,
                lower_1,
                upper_1,
                lower_2,
                upper_2,
                lower_3,
                upper_3,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                IN_ORDER,
            )
        result += product * group_value(scales, column, group, in_weight, GROUPS)[None, :]
    return result


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
    ``IN_ORDER``: of 4 bits, see ``add_product_of_columns``.
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
    for turn in range(first_group * TURNS, last_group * TURNS):
        x_group = turn // TURNS
        start = x_group * X_GROUP + (turn % TURNS) * BLOCK_K
        left = X_GROUP - (turn % TURNS) * BLOCK_K
        if IN % X_GROUP != 0:
            left = tl.minimum(left, IN - start)
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
        if turn % TURNS == TURNS - 1:
            group = x_group * X_GROUP // GROUP
            place = row.to(tl.int64) * X_GROUPS + x_group
            x_sum = tl.load(x_sums + place, mask=in_x, other=0).to(tl.float32)
            x_scale = tl.load(x_scales + place, mask=in_x, other=0.0)
            shift = CENTRE - group_value(zeros, column, group, in_weight, GROUPS)
            # Both below 2^24, so that the sum is exact in fp32.
            exact = total.to(tl.float32) + x_sum[:, None] * shift[None, :]
            result += exact * (x_scale[:, None] * group_value(scales, column, group, in_weight, GROUPS)[None, :])
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    return result
