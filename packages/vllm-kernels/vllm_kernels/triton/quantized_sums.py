"""Sums of a tile along the columns: activations by weights of 8 or 4 bits. For kernels to call."""

import triton
import triton.language as tl

from vllm_kernels.triton.kernel import power_of_two


def span_of(columns: int, bits: int) -> int:
    """The most columns of a turn of the loop where ``columns`` share scales: a power of two up to 128.

    A product of bytes takes at least 32 columns, and two halves of them with 4 bits.
    """
    return min(power_of_two(columns, 64 if bits == 4 else 32), 128)


@triton.jit
def group_value(table, column, group, present, GROUPS: tl.constexpr):
    """Of the rows ``column`` of the weight: their entry of one group, as fp32 ``[BLOCK_N]``."""
    return tl.load(table + column.to(tl.int64) * GROUPS + group, mask=present, other=0).to(tl.float32)


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
    which its sum is multiplied by.
    """
    BYTES: tl.constexpr = (IN * BITS + 7) // 8
    TURNS: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    weight_row = weight + column[None, :].to(tl.int64) * BYTES
    for turn in range(first, last):
        group = turn // TURNS
        start = group * GROUP + (turn % TURNS) * BLOCK_K
        end = tl.minimum(tl.minimum(group * GROUP + GROUP, IN), start + BLOCK_K)
        zero = group_value(zeros, column, group, in_weight, GROUPS)
        if BITS == 8:
            k = start + tl.arange(0, BLOCK_K)
            entries = tl.load(weight_row + k[:, None], mask=(k < end)[:, None] & in_weight[None, :], other=0)
            w = (entries.to(tl.float32) - zero[None, :]).to(x_row.dtype.element_ty)
            values = tl.load(x_row[:, None] + k[None, :], mask=in_x[:, None] & (k < end)[None, :], other=0.0)
            product = tl.dot(values, w, input_precision="ieee")
        else:
            byte = tl.arange(0, BLOCK_K // 2)
            even = start + 2 * byte
            two = tl.load(
                weight_row + (start // 2 + byte)[:, None], mask=(even < end)[:, None] & in_weight[None, :], other=0
            )
            low = ((two & 15).to(tl.float32) - zero[None, :]).to(x_row.dtype.element_ty)
            high = ((two >> 4).to(tl.float32) - zero[None, :]).to(x_row.dtype.element_ty)
            evens = tl.load(x_row[:, None] + even[None, :], mask=in_x[:, None] & (even < end)[None, :], other=0.0)
            odds = tl.load(
                x_row[:, None] + even[None, :] + 1, mask=in_x[:, None] & (even + 1 < end)[None, :], other=0.0
            )
            product = tl.dot(evens, low, input_precision="ieee") + tl.dot(odds, high, input_precision="ieee")
        result += product * group_value(scales, column, group, in_weight, GROUPS)[None, :]
    return result


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
):
    """A tile of fp32 sums: the rows ``row`` of rounded activations by the rows ``column`` of the weight.

    Sums of a group of activations are exact integers; the groups from ``first_group`` to ``last_group`` are added in
    fp32, in order. ``sum(x_q (q - zero)) = sum(x_q (q - c)) + (c - zero) sum(x_q)``, where ``q - c`` is a signed byte.
    """
    BYTES: tl.constexpr = (IN * BITS + 7) // 8
    CENTRE: tl.constexpr = 128 if BITS == 8 else 0
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    q_row = q + row[:, None].to(tl.int64) * IN
    weight_row = weight + column[None, :].to(tl.int64) * BYTES
    for x_group in range(first_group, last_group):
        first = x_group * X_GROUP
        end = tl.minimum(first + X_GROUP, IN)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        for start in range(first, end, BLOCK_K):
            if BITS == 8:
                k = start + tl.arange(0, BLOCK_K)
                entries = tl.load(weight_row + k[:, None], mask=(k < end)[:, None] & in_weight[None, :], other=128)
                w = (entries.to(tl.int32) - CENTRE).to(tl.int8)
                values = tl.load(q_row + k[None, :], mask=in_x[:, None] & (k < end)[None, :], other=0)
                total += tl.dot(values, w, out_dtype=tl.int32)
            else:
                byte = tl.arange(0, BLOCK_K // 2)
                even = start + 2 * byte
                two = tl.load(
                    weight_row + (start // 2 + byte)[:, None], mask=(even < end)[:, None] & in_weight[None, :], other=0
                )
                evens = tl.load(q_row + even[None, :], mask=in_x[:, None] & (even < end)[None, :], other=0)
                odds = tl.load(q_row + even[None, :] + 1, mask=in_x[:, None] & (even + 1 < end)[None, :], other=0)
                total += tl.dot(evens, (two & 15).to(tl.int8), out_dtype=tl.int32)
                total += tl.dot(odds, (two >> 4).to(tl.int8), out_dtype=tl.int32)
        group = first // GROUP
        place = row.to(tl.int64) * X_GROUPS + x_group
        x_sum = tl.load(x_sums + place, mask=in_x, other=0).to(tl.float32)
        x_scale = tl.load(x_scales + place, mask=in_x, other=0.0)
        shift = CENTRE - group_value(zeros, column, group, in_weight, GROUPS)
        # Both below 2^24, so that the sum is exact in fp32.
        exact = total.to(tl.float32) + x_sum[:, None] * shift[None, :]
        result += exact * (x_scale[:, None] * group_value(scales, column, group, in_weight, GROUPS)[None, :])
    return result
