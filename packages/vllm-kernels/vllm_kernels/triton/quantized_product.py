"""Products of activations and weights of 8 or 4 bits, see ``ops.quantization``.

A tile of the result is summed along the columns of ``x``. With few rows there are few tiles, so the columns are cut
into parts that go to programs of their own; a second kernel adds the parts in order.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work

MOST_PARTS = 8
ADDED = 1024
"""Columns of a row whose parts one program adds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product is cut.

    Args:
        OUT, IN: rows and columns of the weight.
        GROUP: columns that share a scale of the weight.
        GROUPS: of a row of the weight.
        BITS: of an entry.
        BLOCK_M, BLOCK_N: rows of ``x`` and of the weight in a tile.
        BLOCK_K: columns of one turn of the loop, at most a group's.
        PARTS: of the columns.
        num_warps, num_stages: as Triton has them.
    """

    OUT: int
    IN: int
    GROUP: int
    GROUPS: int
    BITS: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    PARTS: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(
        cls,
        num_rows: int,
        out_features: int,
        in_features: int,
        scheme: Quantization,
        dtype: torch.dtype,
        where: Where,
    ) -> "Shape":
        """By the numbers of the product alone, on a device or for a family."""
        group = scheme.group_size or in_features
        block_m = min(max(16, power_of_two(num_rows)), 64)
        inner = scheme.activation_group if scheme.activation_bits else group
        choice = (ROUNDED_TILES if scheme.activation_bits else TILES).choose(
            where,
            rows=block_m,
            bits=scheme.bits,
            span=span_of(min(inner, in_features), scheme.bits),
            x_bits=8 * dtype.itemsize,
        )
        tiles = -(-num_rows // block_m) * -(-out_features // choice["BLOCK_N"])
        useful = min(2 * multiprocessors(where) // max(tiles, 1), in_features // 512, MOST_PARTS)
        parts = 1 << (max(useful, 1).bit_length() - 1)
        groups = -(-in_features // group)
        return cls(out_features, in_features, group, groups, scheme.bits, block_m, PARTS=parts, **choice)

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with, warps and stages left out."""
        sizes = asdict(self)
        return {name: value for name, value in sizes.items() if name not in ("num_warps", "num_stages")}


def span_of(columns: int, bits: int) -> int:
    """The most columns of a turn of the loop where ``columns`` share scales: a power of two up to 128.

    A product of bytes takes at least 32 columns, and two halves of them with 4 bits.
    """
    return min(power_of_two(columns, 64 if bits == 4 else 32), 128)


def _rule(rows: int, bits: int, span: int, x_bits: int) -> Choice:
    few = rows <= 32
    return {
        "BLOCK_N": 64 if rows == 16 else 128,
        "BLOCK_K": min(span, 64) if x_bits == 32 else span,
        "num_warps": 4 if few else 8,
        "num_stages": 4 if few else 3,
    }


def _candidates(rows: int, bits: int, span: int, x_bits: int) -> dict[str, tuple[int, ...]]:
    least = 64 if bits == 4 else 32
    return {
        "BLOCK_N": (32, 64, 128, 256),
        "BLOCK_K": tuple(size for size in (32, 64, 128) if least <= size <= span),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    }


def _work(loaded_bits: int, rows: int, bits: int, BLOCK_N: int, BLOCK_K: int) -> Work:
    bound: Literal["memory", "matrix"] = "memory" if rows <= 32 else "matrix"
    return Work(bound, rows * BLOCK_N, (rows * loaded_bits + BLOCK_N * bits) * BLOCK_K // 8)


def _work_of_floats(
    rows: int, bits: int, span: int, x_bits: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int
) -> Work:
    return _work(x_bits, rows, bits, BLOCK_N, BLOCK_K)


def _work_of_bytes(
    rows: int, bits: int, span: int, x_bits: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int
) -> Work:
    return _work(8, rows, bits, BLOCK_N, BLOCK_K)


def _classes_of(schemes: Iterable[Quantization]) -> list[ShapeClass]:
    found = {
        (
            rows,
            scheme.bits,
            span_of(scheme.activation_group if scheme.activation_bits else scheme.group_size or 128, scheme.bits),
        )
        for scheme in schemes
        for rows in (16, 32, 64)
    }
    return [{"rows": rows, "bits": bits, "span": span, "x_bits": 16} for rows, bits, span in sorted(found)]


_FIELDS = ("rows", "bits", "span", "x_bits")
TILES = Tunable(
    "product_kernel",
    _FIELDS,
    _rule,
    _candidates,
    lambda family: _classes_of(scheme for scheme in SCHEMES if not scheme.activation_bits),
    _work_of_floats,
)
ROUNDED_TILES = Tunable(
    "rounded_product_kernel",
    _FIELDS,
    _rule,
    _candidates,
    lambda family: _classes_of(scheme for scheme in SCHEMES if scheme.activation_bits),
    _work_of_bytes,
)


@dataclass(frozen=True, slots=True)
class Rounded:
    """Activations of 8 bits: int8 ``[n, in_features]``; for each row and group of columns their scale and sum.

    ``scales`` fp32 and ``sums`` int32 are ``[n, groups]``, of ``group`` columns.
    """

    q: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor
    group: int


@triton.jit
def round_kernel(x, q, scales, sums, IN: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """One group of one row: ``q = round(x * (127 / max|x|))``, ties to even."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    place = tl.arange(0, BLOCK)
    column = group * GROUP + place
    present = (place < GROUP) & (column < IN)
    values = tl.load(x + row * IN + column, mask=present, other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(values), axis=0)
    peak = tl.where(peak < 1e-30, 0.0, peak)
    per_unit = tl.where(peak == 0.0, 0.0, tl.div_rn(127.0, tl.where(peak == 0.0, 1.0, peak)))
    # Adding and taking away 1.5 * 2^23 rounds to whole numbers, ties to the even one.
    units = (values * per_unit + 12582912.0) - 12582912.0
    finite = tl.where(peak < float("inf"), 1.0, 0.0)
    units = tl.where(tl.abs(units) <= 127.0, units, 0.0).to(tl.int32)
    tl.store(q + row * IN + column, units.to(tl.int8), mask=present)
    # What is not finite makes its group NaN.
    scale = tl.where(finite == 1.0, tl.div_rn(peak, 127.0), float("nan"))
    unusual = tl.sum(tl.where(values == values, 0, 1), axis=0)
    scale = tl.where(unusual > 0, float("nan"), scale)
    tl.store(scales + row * tl.num_programs(1) + group, scale)
    tl.store(sums + row * tl.num_programs(1) + group, tl.sum(units, axis=0))


@triton.jit
def finish(
    result, row, column, present, bias, residual, out, parts, part, num_rows, OUT: tl.constexpr, PARTS: tl.constexpr
):
    """Store a tile: to ``out`` with bias and residual, or, as one of several parts, to ``parts``."""
    place = row[:, None].to(tl.int64) * OUT + column[None, :]
    if PARTS > 1:
        tl.store(parts + part.to(tl.int64) * num_rows * OUT + place, result, mask=present)
    else:
        if bias is not None:
            result += tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            result += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=present)


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


@triton.jit
def product_kernel(
    x,
    weight,
    scales,
    zeros,
    bias,
    residual,
    out,
    parts,
    num_rows,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weights only: entries become numbers of the type of ``x``; a part has turns of its own."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    TURNS: tl.constexpr = GROUPS * ((GROUP + BLOCK_K - 1) // BLOCK_K)
    turns_of_part = tl.cdiv(TURNS, PARTS)
    in_x = row < num_rows
    in_weight = column < OUT
    result = sum_of_weights_only(
        x + row.to(tl.int64) * IN,
        in_x,
        weight,
        scales,
        zeros,
        column,
        in_weight,
        part * turns_of_part,
        tl.minimum((part + 1) * turns_of_part, TURNS),
        IN,
        GROUP,
        GROUPS,
        BITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    present = in_x[:, None] & in_weight[None, :]
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT, PARTS)


@triton.jit
def rounded_product_kernel(
    q,
    x_scales,
    x_sums,
    weight,
    scales,
    zeros,
    bias,
    residual,
    out,
    parts,
    num_rows,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    X_GROUP: tl.constexpr,
    X_GROUPS: tl.constexpr,
):
    """Bytes by bytes: a part has groups of activations of its own."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    groups_of_part = tl.cdiv(X_GROUPS, PARTS)
    in_x = row < num_rows
    in_weight = column < OUT
    result = sum_of_bytes(
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
        part * groups_of_part,
        tl.minimum((part + 1) * groups_of_part, X_GROUPS),
        IN,
        GROUP,
        GROUPS,
        BITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        X_GROUP,
        X_GROUPS,
    )
    present = in_x[:, None] & in_weight[None, :]
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT, PARTS)


@triton.jit
def add_parts_kernel(parts, bias, residual, out, num_rows, out_features, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the parts, ``[PARTS, num_rows, out_features]``, of BLOCK columns, in order, then bias and residual."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = column < out_features
    result = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        result += tl.load(parts + (part * num_rows + row) * out_features + column, mask=present, other=0.0)
    if bias is not None:
        result += tl.load(bias + column, mask=present, other=0.0).to(tl.float32)
    if residual is not None:
        result += tl.load(residual + row * out_features + column, mask=present, other=0.0).to(tl.float32)
    tl.store(out + row * out_features + column, result.to(out.dtype.element_ty), mask=present)


def round_activations(x: torch.Tensor, scheme: Quantization) -> Rounded:
    """Activations ``[n, in_features]``, contiguous, as 8 bits."""
    num_rows, in_features = x.shape
    group = scheme.activation_group
    groups = -(-in_features // group)
    rounded = Rounded(
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(num_rows, groups, dtype=torch.float32),
        x.new_empty(num_rows, groups, dtype=torch.int32),
        group,
    )
    rounding.launch(
        (num_rows, groups),
        x,
        rounded.q,
        rounded.scales,
        rounded.sums,
        IN=in_features,
        GROUP=group,
        BLOCK=power_of_two(group),
    )
    return rounded


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    shape: Shape,
) -> None:
    """``out = x @ entries.T + bias + residual`` for contiguous activations ``[n, in_features]`` as they are."""
    parts = parts_of(shape.PARTS, out)
    product.launch(
        _grid(len(x), shape),
        x,
        weight,
        scales,
        zeros,
        bias,
        residual,
        out,
        parts,
        len(x),
        **asdict(shape),
    )
    fold(parts, bias, residual, out)


def multiply_rounded(
    x: Rounded,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    shape: Shape,
) -> None:
    """The same for activations of 8 bits."""
    parts = parts_of(shape.PARTS, out)
    rounded_product.launch(
        _grid(len(x.q), shape),
        x.q,
        x.scales,
        x.sums,
        weight,
        scales,
        zeros,
        bias,
        residual,
        out,
        parts,
        len(x.q),
        **asdict(shape),
        X_GROUP=x.group,
        X_GROUPS=x.scales.shape[1],
    )
    fold(parts, bias, residual, out)


def _grid(num_rows: int, shape: Shape) -> tuple[int, int, int]:
    return -(-num_rows // shape.BLOCK_M), -(-shape.OUT // shape.BLOCK_N), shape.PARTS


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
            num_rows,
            out_features,
            PARTS=len(parts),
            BLOCK=ADDED,
        )


SCHEMES: tuple[Quantization, ...] = (
    Quantization(8, None, 8),
    Quantization(4, 128, 8),
    Quantization(8, None, None),
    Quantization(4, 128, None),
    Quantization(4, 64, None),
    Quantization(4, 32, None),
)
"""What ``--quantization`` and the checkpoints of AWQ and GPTQ have."""

_LAYERS = ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (6144, 4096), (4096, 14336))
"""Rows and columns of projections of the Qwen 3 0.6B and the Llama 8B shapes."""


def _shapes(family: str, rounded: bool) -> list[tuple[Shape, Quantization, torch.dtype]]:
    found = []
    for scheme in SCHEMES:
        if bool(scheme.activation_bits) == rounded:
            for dtype in (torch.bfloat16, torch.float16):
                for out_features, in_features in _LAYERS:
                    for num_rows in (1, 32, 64, 1024):
                        shape = Shape.choose(num_rows, out_features, in_features, scheme, dtype, family)
                        found.append((shape, scheme, dtype))
    return list(dict.fromkeys(found))


def _product_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"x": pointer(dtype), **_common(dtype, shape)}, shape.constants, shape.num_warps, shape.num_stages
        )
        for shape, _, dtype in _shapes(family, rounded=False)
    ]


def _rounded_configurations(family: str) -> list[Configuration]:
    found = []
    for shape, scheme, dtype in _shapes(family, rounded=True):
        types = {"q": "*i8", "x_scales": "*fp32", "x_sums": "*i32", **_common(dtype, shape)}
        group = scheme.activation_group
        constants = {**shape.constants, "X_GROUP": group, "X_GROUPS": -(-shape.IN // group)}
        found.append(Configuration(types, constants, shape.num_warps, shape.num_stages))
    return found


def _common(dtype: torch.dtype, shape: Shape) -> dict[str, str | None]:
    return {
        "weight": "*u8",
        "scales": "*fp32",
        "zeros": "*u8",
        "bias": None,
        "residual": pointer(dtype),
        "out": pointer(dtype),
        "parts": "*fp32" if shape.PARTS > 1 else None,
        "num_rows": "i32",
    }


def _rounding_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"x": pointer(dtype), "q": "*i8", "scales": "*fp32", "sums": "*i32"},
            {"IN": in_features, "GROUP": group, "BLOCK": power_of_two(group)},
        )
        for dtype in FLOATS
        for in_features in (1024, 2048, 3072, 4096, 14336)
        for group in (128, 512)
    ]


def _add_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        for residual in (pointer(dtype), None):
            for parts in (2, 4, MOST_PARTS):
                types: dict[str, str | None] = {"parts": "*fp32", "bias": None, "residual": residual}
                types |= {"out": pointer(dtype), "num_rows": "i32", "out_features": "i32"}
                found.append(Configuration(types, {"PARTS": parts, "BLOCK": ADDED}))
    return found


product = Kernel(product_kernel, _product_configurations)
rounded_product = Kernel(rounded_product_kernel, _rounded_configurations)
rounding = Kernel(round_kernel, _rounding_configurations)
add_parts = Kernel(add_parts_kernel, _add_configurations)
