"""Products of the experts with their tokens."""

import itertools
from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.expert_weight import Scheme
from vllm_kernels.linear_weight import Activation
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.activation import apply_gate
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.moe_align import Blocks
from vllm_kernels.triton.mxfp4 import columns_of_turn
from vllm_kernels.triton.mxfp4_sums import sum_of_mxfp4
from vllm_kernels.triton.quantized_product import most_columns
from vllm_kernels.triton.quantized_sums import span_of, sum_of_bytes, sum_of_weights_only, takes_in_order
from vllm_kernels.triton.sliced_sums import MOST_SLICED, sliced_sum_of_weights_only
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work

BLOCKS_OF_A_GROUP = 16
"""Neighbouring blocks of rows whose tiles of the same columns are computed one after the other, to share the weight."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Activations ``[n, in_features]``, contiguous: as they are, or rounded.

    Args:
        entries: numbers of the type of ``x``, e4m3, or int8.
        scales: fp32, of e4m3 ``[n]``, of int8 ``[n, groups]``.
        sums: int32 ``[n, groups]``, of the int8 entries of each group.
    """

    entries: torch.Tensor
    scales: torch.Tensor | None = None
    sums: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product of all experts is cut.

    Args:
        OUT, IN: rows and columns of the weight of an expert.
        GROUP, GROUPS: columns that share a scale of small integers, and how many such groups; else 0.
        BITS: of an entry that is a small integer, else 0.
        X_GROUP, X_GROUPS: the same of activations that are rounded to int8, else 0.
        BLOCK_M, BLOCK_N: rows of ``x`` and of the weight in a tile.
        BLOCK_K: columns of one turn of the loop, or of a slice's.
        SLICES: of a turn's columns, see ``sliced_sums``; 1 where there are none.
        IN_ORDER: of entries of 4 bits that are no ``words``, see ``quantized_sums.takes_in_order``.
        num_warps, num_stages: as Triton has them.
    """

    OUT: int
    IN: int
    GROUP: int
    GROUPS: int
    BITS: int
    X_GROUP: int
    X_GROUPS: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    SLICES: int
    IN_ORDER: bool
    num_warps: int
    num_stages: int

    @classmethod
    def choose(
        cls, out_features: int, in_features: int, scheme: Scheme, dtype: torch.dtype, block_m: int, where: Where
    ) -> "Shape":
        """By the numbers of the product alone, on a device or for a family."""
        group = groups = bits = x_group = x_groups = 0
        if isinstance(scheme, Quantization):
            bits, group = scheme.bits, scheme.group_size or in_features
            groups = -(-in_features // group)
            if scheme.activation_bits:
                x_group = scheme.activation_group
                x_groups = -(-in_features // x_group)
            span = span_of(min(x_group or group, in_features), bits, x_group > 0)
        elif scheme == "mxfp4":
            span = columns_of_turn(in_features, block_m, dtype)
        else:
            span = span_of(in_features, 8, scheme == "fp8")
        choice = TILES.choose(where, rows=block_m, weights=_name(scheme), span=span, x_bits=8 * dtype.itemsize)
        return cls(
            out_features,
            in_features,
            group,
            groups,
            bits,
            x_group,
            x_groups,
            block_m,
            SLICES=choice["num_warps"] if _sliced(block_m, _name(scheme)) else 1,
            IN_ORDER=((bits == 4 and x_group > 0) or scheme == "mxfp4") and takes_in_order(block_m, where),
            **choice,
        )

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with, warps and stages left out."""
        sizes = asdict(self)
        return {name: value for name, value in sizes.items() if name not in ("num_warps", "num_stages")}


def _name(scheme: Scheme) -> str:
    """Of a scheme, in shape classes."""
    if isinstance(scheme, Quantization):
        return f"int{scheme.bits}{' by int8' if scheme.activation_bits else ''}"
    return scheme or "float"


def _sliced(rows: int, weights: str) -> bool:
    """Whether a tile has ``sliced_sums``."""
    return rows <= MOST_SLICED and weights == "int4"


def _most_columns(weights: str, span: int, most: int = 128) -> int:
    return most_columns(4 if weights == "int4" else 8, span, most)


def _rule(rows: int, weights: str, span: int, x_bits: int) -> Choice:
    most = 64 if x_bits == 32 else 128
    if weights == "float":
        most = 32 if x_bits == 32 else 64 if rows > 32 else 128
    few = rows <= 32
    if _sliced(rows, weights):
        return {"BLOCK_N": 32, "BLOCK_K": max(span * 16 // x_bits, 32), "num_warps": 4, "num_stages": 4}
    return {
        "BLOCK_N": 64 if rows == 16 or (x_bits == 32 and weights == "float") else _most_columns(weights, span),
        "BLOCK_K": min(span, most),
        "num_warps": 4 if few or (weights == "int4" and x_bits == 16) else 8,
        "num_stages": 4 if few else 3,
    }


def _candidates(rows: int, weights: str, span: int, x_bits: int) -> dict[str, tuple[int, ...]]:
    least = min(span, 64) if weights.startswith("int4") else 32
    return {
        "BLOCK_N": tuple(size for size in (32, 64, 128, 256) if size <= _most_columns(weights, span, 256)),
        "BLOCK_K": tuple(size for size in (32, 64, 128) if least <= size <= span),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    }


def _work(
    rows: int, weights: str, span: int, x_bits: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int
) -> Work:
    bits = {"float": x_bits, "fp8": 8, "mxfp4": 4}.get(weights, 4 if weights.startswith("int4") else 8)
    loaded_bits = 8 if weights == "fp8" or weights.endswith("by int8") else x_bits
    columns = BLOCK_K * (num_warps if _sliced(rows, weights) else 1)
    loaded = (rows * loaded_bits + BLOCK_N * bits) * columns // 8
    return Work("memory" if rows <= 32 else "matrix", rows * BLOCK_N, loaded)


def _classes(family: str) -> list[ShapeClass]:
    schemes = [scheme for scheme in SCHEMES if scheme != "fp8" or family != "sm_80"]
    found: list[ShapeClass] = [
        {"rows": rows, "weights": _name(scheme), "span": 128, "x_bits": 16}
        for scheme in schemes
        for rows in ((16, 32, 64, 128) if scheme in WIDE else (16, 32, 64))
    ]
    in_features = GPT_OSS[2]
    return found + [
        {"rows": rows, "weights": "mxfp4", "span": columns_of_turn(in_features, rows, torch.bfloat16), "x_bits": 16}
        for rows in (16, 32, 64)
    ]


TILES = Tunable("expert_product_kernel", ("rows", "weights", "span", "x_bits"), _rule, _candidates, _classes, _work)
WIDE: tuple[Scheme, ...] = (None, "fp8")
"""Schemes whose tiles may have 128 rows: the others need registers for numbers that they make of entries."""


def rows_of_block(num_pairs: int, num_experts: int, dtype: torch.dtype, schemes: tuple[Scheme, ...]) -> int:
    """Rows of a block, from what an expert has on average: 16 to 128, to 64 where registers hold no more.

    The order of a sum depends on it, so it is always 64 where a result must not depend on the batch.
    """
    if batch_invariance.enabled():
        return 64
    wide = dtype != torch.float32 and all(scheme in WIDE for scheme in schemes)
    return min(power_of_two(-(-num_pairs // num_experts), 16), 128 if wide else 64)


@triton.jit
def dense_sum(
    x_row,
    in_x,
    weight_row,
    in_weight,
    IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """fp32 sums ``[BLOCK_M, BLOCK_N]`` of rows at ``x_row`` and ``weight_row`` (pointers), of one type."""
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, IN, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if IN % BLOCK_K == 0:
            values = tl.load(x_row[:, None] + k[None, :], mask=in_x[:, None], other=0.0)
            w = tl.load(weight_row[None, :] + k[:, None], mask=in_weight[None, :], other=0.0)
        else:
            values = tl.load(x_row[:, None] + k[None, :], mask=in_x[:, None] & (k < IN)[None, :], other=0.0)
            w = tl.load(weight_row[None, :] + k[:, None], mask=in_weight[None, :] & (k < IN)[:, None], other=0.0)
        if x_row.dtype.element_ty == tl.float8e4nv:
            # Hopper's tensor cores keep 14 bits of a sum: it moves to fp32 registers once a turn.
            result = tl.dot(values, w, result, max_num_imprecise_acc=BLOCK_K)
        else:
            result = tl.dot(values, w, result, input_precision="ieee")
    return result


@triton.jit(do_not_specialize=["num_blocks"])
def expert_product_kernel(
    x,
    x_scales,
    x_sums,
    weight,
    scales,
    zeros,
    tops,
    bias,
    out,
    pairs,
    block_experts,
    block_rows,
    num_blocks,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    X_GROUP: tl.constexpr,
    X_GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    IN_ORDER: tl.constexpr,
    PAIRS_OF_ROW: tl.constexpr,
    GATE: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """One block of pairs by BLOCK_N rows of its expert's weight ``[experts, OUT, IN]``.

    Row ``pair // PAIRS_OF_ROW`` of ``x`` is multiplied; the result is row ``pair`` of ``out``. With GATE, tiles take
    rows of gate and value by turns, so that each thread has both of a pair, and ``out`` has the gated half.
    With BITS the weight is small integers, and with ``x_sums`` the activations, too; with ``tops``, it is MXFP4. Else
    ``x`` and ``weight`` are of one type; those of fp8 have ``x_scales`` ``[rows]`` and ``scales`` ``[experts, OUT]``.
    ``bias`` is ``[experts, OUT]``.
    """
    wait_for_earlier(PDL)
    COLUMNS: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    HALF: tl.constexpr = OUT // 2
    program = tl.program_id(0)
    first = program // (GROUP_M * COLUMNS) * GROUP_M
    size = tl.minimum(num_blocks - first, GROUP_M)
    block = first + program % (GROUP_M * COLUMNS) % size
    tile = program % (GROUP_M * COLUMNS) // size
    expert = tl.load(block_experts + block)
    if expert >= 0:
        index = tl.arange(0, BLOCK_M)
        in_x = index < tl.load(block_rows + block)
        pair = tl.load(pairs + block.to(tl.int64) * BLOCK_M + index, mask=in_x, other=0)
        row = pair // PAIRS_OF_ROW
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_weight = column < OUT
        if GATE != "none":
            column = column % 2 * HALF + column // 2
        weight_row = expert.to(tl.int64) * OUT + column
        x_row = x + row.to(tl.int64) * IN
        if tops is not None:
            result = sum_of_mxfp4(
                x_row,
                in_x,
                weight,
                scales,
                tops,
                weight_row,
                in_weight,
                0,
                IN // BLOCK_K,
                IN,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                IN_ORDER,
            )
        elif BITS == 0:
            result = dense_sum(x_row, in_x, weight + weight_row * IN, in_weight, IN, BLOCK_M, BLOCK_N, BLOCK_K)
            if scales is not None:
                result *= tl.load(x_scales + row, mask=in_x, other=0.0)[:, None]
                result *= tl.load(scales + weight_row, mask=in_weight, other=0.0)[None, :]
        elif x_sums is None and SLICES > 1:
            result = sliced_sum_of_weights_only(
                x_row,
                in_x,
                weight,
                scales,
                weight_row,
                in_weight,
                IN,
                GROUP,
                GROUPS,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                SLICES,
            )
        elif x_sums is None:
            result = sum_of_weights_only(
                x_row,
                in_x,
                weight,
                scales,
                zeros,
                weight_row,
                in_weight,
                0,
                GROUPS * ((GROUP + BLOCK_K - 1) // BLOCK_K),
                IN,
                GROUP,
                GROUPS,
                BITS,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
        else:
            result = sum_of_bytes(
                x,
                x_scales,
                x_sums,
                row,
                in_x,
                weight,
                scales,
                zeros,
                weight_row,
                in_weight,
                0,
                X_GROUPS,
                IN,
                GROUP,
                GROUPS,
                BITS,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                X_GROUP,
                X_GROUPS,
                IN_ORDER,
            )
        if bias is not None:
            result += tl.load(bias + weight_row, mask=in_weight, other=0.0).to(tl.float32)[None, :]
        if GATE == "none":
            target = pair[:, None].to(tl.int64) * OUT + column[None, :]
            tl.store(out + target, result.to(out.dtype.element_ty), mask=in_x[:, None] & in_weight[None, :])
        else:
            gate, value = tl.split(tl.reshape(result, [BLOCK_M, BLOCK_N // 2, 2]))
            half_column = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            target = pair[:, None].to(tl.int64) * HALF + half_column[None, :]
            gated = apply_gate(gate, value, GATE)
            tl.store(out + target, gated.to(out.dtype.element_ty), mask=in_x[:, None] & (half_column < HALF)[None, :])


def multiply(
    x: Rows,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    tops: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    blocks: Blocks,
    pairs_of_row: int,
    gate: Activation | None,
    shape: Shape,
) -> None:
    """Row ``pair // pairs_of_row`` of ``x`` times its expert's weight, to row ``pair`` of ``out``."""
    expert_product.launch(
        (blocks.count * -(-shape.OUT // shape.BLOCK_N),),
        x.entries,
        x.scales,
        x.sums,
        weight,
        scales,
        zeros,
        tops,
        bias,
        out,
        blocks.pairs,
        blocks.experts,
        blocks.rows,
        blocks.count,
        **asdict(shape),
        PAIRS_OF_ROW=pairs_of_row,
        GATE=gate or "none",
        GROUP_M=BLOCKS_OF_A_GROUP,
    )


MODELS = (
    # experts, top_k, hidden, intermediate
    (8, 2, 4096, 14336),  # Mixtral 8x7B
    (128, 8, 2048, 768),  # Qwen 3 30B A3B
    (256, 8, 7168, 2048),  # DeepSeek-V3
)
GPT_OSS = (128, 4, 2880, 2880)
"""The same of gpt-oss 120B: MXFP4 and biases."""
SCHEMES: tuple[Scheme, ...] = (
    None,
    "fp8",
    Quantization(8, None, 8),
    Quantization(8, None, None),
    Quantization(4, 128, None),
    Quantization(4, 128, 8),
)


def _product_configurations(family: str) -> list[Configuration]:
    found = []
    for (_, top_k, hidden, intermediate), scheme in [*itertools.product(MODELS, SCHEMES), (GPT_OSS, "mxfp4")]:
        if scheme == "fp8" and family == "sm_80":
            continue
        for dtype in (torch.bfloat16, torch.float16):
            for block_m in (16, 32, 64, 128):
                if block_m > 64 and scheme not in WIDE:
                    continue
                up = Shape.choose(2 * intermediate, hidden, scheme, dtype, block_m, family)
                down = Shape.choose(hidden, intermediate, scheme, dtype, block_m, family)
                found += [_configuration(up, scheme, dtype, top_k, "swigluoai" if scheme == "mxfp4" else "silu")]
                found += [_configuration(down, scheme, dtype, 1, "none")]
    return list({configuration.label: configuration for configuration in found}.values())


def _configuration(shape: Shape, scheme: Scheme, dtype: torch.dtype, pairs_of_row: int, gate: str) -> Configuration:
    kind = pointer(dtype)
    types: dict[str, str | None] = {"x": kind, "x_scales": None, "x_sums": None, "weight": kind, "scales": None}
    types |= {
        "zeros": None,
        "tops": None,
        "bias": None,
        "out": kind,
        "pairs": "*i32",
        "block_experts": "*i32",
        "block_rows": "*i32",
    }
    types["num_blocks"] = "i32"
    if scheme == "fp8":
        types |= {"x": "*fp8e4nv", "x_scales": "*fp32", "weight": "*fp8e4nv", "scales": "*fp32"}
    elif scheme == "mxfp4":
        types |= {"weight": "*u8", "scales": "*u8", "tops": "*u8", "bias": kind}
    elif scheme is not None:
        types |= {"weight": "*u8", "scales": "*fp32", "zeros": "*u8"}
        if scheme.activation_bits:
            types |= {"x": "*i8", "x_scales": "*fp32", "x_sums": "*i32"}
        elif scheme.bits == 4:
            types |= {"scales": "*i32", "zeros": None}
    constants = {**shape.constants, "PAIRS_OF_ROW": pairs_of_row, "GATE": gate, "GROUP_M": BLOCKS_OF_A_GROUP}
    return Configuration(types, constants, shape.num_warps, shape.num_stages)


expert_product = Kernel(expert_product_kernel, _product_configurations)
