"""Sums of a tile along the columns: activations by weights of MXFP4. For kernels to call."""

import triton
import triton.language as tl

from vllm_kernels.mxfp4_weight import NAN_SCALE

NO_NUMBER = tl.constexpr(NAN_SCALE)


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
def factor_of(scale, top, x):
    """What ``two_numbers`` multiplies entries of a block by: ``2^(scale - top)`` and what their bits are short of.

    Zero where it is too small to count. ``scale`` and ``top`` are int32; NO_NUMBER gives NaN.
    """
    if x.dtype.element_ty == tl.bfloat16:
        exponent = scale - top + 253  # 2^126 times
        bits = tl.where(scale == NO_NUMBER, 0x7FC0, tl.where(exponent > 0, exponent, 0) << 7)
        factor = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        exponent = scale - top + 141  # 2^14 times
        factor = (tl.where(exponent > 0, exponent, 0) << 23).to(tl.float32, bitcast=True)
        factor = tl.where(scale == NO_NUMBER, float("nan"), factor).to(x.dtype.element_ty)
    return factor


@triton.jit
def two_numbers(words, factor, x, NUMBER: tl.constexpr):
    """Columns NUMBER and NUMBER + 4 of the eight entries in each word times ``factor``, in the type ``x`` points to.

    Three bits of an entry are the lowest of the exponent and the highest of the fraction of a number that is 2^14 (half
    precision) or 2^126 (bfloat16) times smaller, 0.5 and 0 (which are its subnormal numbers) included. Both are made
    at once in the halves of 32 bits.
    """
    two = words >> (4 * NUMBER)
    if x.dtype.element_ty == tl.bfloat16:
        bits = ((two & 0x00070007) << 6) | ((two & 0x00080008) << 12)
        upper = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True) * factor
        lower = (bits & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True) * factor
    else:
        bits = ((two & 0x00070007) << 9) | ((two & 0x00080008) << 12)
        upper = (bits >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(x.dtype.element_ty) * factor
        lower = (bits & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(x.dtype.element_ty) * factor
    return lower, upper


@triton.jit
def sum_of_mxfp4(
    x_row,
    in_x,
    weight,
    scales,
    tops,
    column,
    in_weight,
    first,
    last,
    IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """A tile of fp32 sums: rows at ``x_row`` (pointers ``[BLOCK_M]``) by the rows ``column`` of the weight, in turns of
    BLOCK_K columns, here those from ``first`` to ``last``.

    Entries are relative to the greatest scale of their row (``tops``) until they are summed, so that none is out of
    the range of half precision. ``IN_ORDER``: see ``add_product_of_columns``.
    """
    GROUPS: tl.constexpr = BLOCK_K // 32
    WORDS: tl.constexpr = BLOCK_K // 8
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    weight_row = weight.to(tl.pointer_type(tl.uint32)) + column[None, :].to(tl.int64) * (IN // 8)
    scale_row = scales + column[None, :].to(tl.int64) * (IN // 32)
    top = tl.load(tops + column, mask=in_weight, other=1).to(tl.int32)
    for turn in range(first, last):
        k = turn * BLOCK_K + tl.arange(0, BLOCK_K)
        word = turn * WORDS + tl.arange(0, WORDS)
        group = turn * GROUPS + tl.arange(0, GROUPS)
        values = tl.load(x_row[:, None] + k[None, :], mask=in_x[:, None], other=0.0)
        words = tl.load(weight_row + word[:, None], mask=in_weight[None, :], other=0)
        scale = tl.load(scale_row + group[:, None], mask=in_weight[None, :], other=0).to(tl.int32)
        factor = factor_of(scale, top[None, :], x_row)
        factor = tl.reshape(tl.broadcast_to(factor[:, None, :], [GROUPS, 4, BLOCK_N]), [WORDS, BLOCK_N])
        lower_0, upper_0 = two_numbers(words, factor, x_row, 0)
        lower_1, upper_1 = two_numbers(words, factor, x_row, 1)
        lower_2, upper_2 = two_numbers(words, factor, x_row, 2)
        lower_3, upper_3 = two_numbers(words, factor, x_row, 3)
        result = add_product_of_columns(
            result,
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
    return result * (top << 23).to(tl.float32, bitcast=True)[None, :]
