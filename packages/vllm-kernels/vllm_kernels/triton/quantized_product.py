"""Products of activations and weights of 8 or 4 bits, see ``ops.quantization``.

A tile of the result is summed along the columns of ``x`` (``quantized_sums``), which are cut into parts where there are
few rows (``product_parts``).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.few_rows import MOST_ROWS
from vllm_kernels.triton.kernel import Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.product_parts import MOST_PARTS, finish, fold, parts_of
from vllm_kernels.triton.quantized_rounding import Rounded
from vllm_kernels.triton.quantized_sums import span_of, sum_of_bytes, sum_of_weights_only, takes_in_order
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work
from vllm_kernels.triton.words import are_words

UNDER_WAY = 60 * 1024
"""Bytes of the weight that a multiprocessor's programs should have asked for at a time: see ``candidates``."""


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
        """By the numbers of the product alone, on a device or for a family.

        Always the same where a result must not depend on the batch.
        """
        alone = batch_invariance.enabled()
        group = scheme.group_size or in_features
        block_m = 64 if alone else min(max(16, power_of_two(num_rows)), 64)
        inner = scheme.activation_group if scheme.activation_bits else group
        choice = (ROUNDED_TILES if scheme.activation_bits else TILES).choose(
            where,
            rows=block_m,
            bits=scheme.bits,
            span=span_of(min(inner, in_features), scheme.bits, scheme.activation_bits is not None),
            x_bits=8 * dtype.itemsize,
        )
        tiles = -(-num_rows // block_m) * -(-out_features // choice["BLOCK_N"])
        prefetched = (choice["num_stages"] - 1) * choice["BLOCK_N"] * choice["BLOCK_K"] * scheme.bits // 8
        programs = multiprocessors(where) * max(2, -(-UNDER_WAY // prefetched))
        parts = 1 if alone else max(1, min(programs // max(tiles, 1), in_features // 512, MOST_PARTS))
        groups = -(-in_features // group)
        return cls(
            out_features,
            in_features,
            group,
            groups,
            scheme.bits,
            block_m,
            PARTS=parts,
            **choice,
        )

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with, warps and stages left out."""
        sizes = asdict(self)
        return {name: value for name, value in sizes.items() if name not in ("PARTS", "num_warps", "num_stages")}

    @property
    def warps(self) -> dict[str, int]:
        """Warps, and stages of the pipeline of loads."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def most_columns(bits: int, span: int, most: int = 128) -> int:
    """Of a tile: 64 by turns of 32 entries of 4 bits, more of which Triton's compiler for ``sm_100`` fails on."""
    return 64 if bits == 4 and span == 32 else most


def _rule(rows: int, bits: int, span: int, x_bits: int) -> Choice:
    # Turns of few columns have little to load, so more of them are under way.
    stages = (8, 6, 3) if span * bits <= 256 else (5, 5 if bits == 4 else 4, 3)
    return {
        "BLOCK_N": most_columns(bits, span),
        "BLOCK_K": min(span, 64) if x_bits == 32 else span,
        # Entries of 4 bits take registers and instructions; two programs have each other's products to wait for.
        "num_warps": 4 if bits == 4 and x_bits == 16 else 8,
        "num_stages": stages[(16, 32, 64).index(rows)],
    }


def _candidates(rows: int, bits: int, span: int, x_bits: int) -> dict[str, tuple[int, ...]]:
    least = min(span, 64) if bits == 4 else 32
    return {
        "BLOCK_N": tuple(size for size in (32, 64, 128, 256) if size <= most_columns(bits, span, 256)),
        "BLOCK_K": tuple(size for size in (32, 64, 128) if least <= size <= span),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5, 6, 8),
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
            span_of(
                scheme.activation_group if scheme.activation_bits else scheme.group_size or 128,
                scheme.bits,
                scheme.activation_bits is not None,
            ),
        )
        for scheme in schemes
        for rows in (16, 32, 64)
        if rows > MOST_ROWS or not are_words(scheme)
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


@triton.jit(do_not_specialize=["num_rows"])
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
    PDL: tl.constexpr,
):
    """Weights only: entries become numbers of the type of ``x``; a part has turns of its own."""
    wait_for_earlier(PDL)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    TURNS: tl.constexpr = GROUPS * ((GROUP + BLOCK_K - 1) // BLOCK_K)
    turns_of_part = tl.cdiv(TURNS, tl.num_programs(2))
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
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT)


@triton.jit(do_not_specialize=["num_rows"])
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
    IN_ORDER: tl.constexpr,
    X_GROUP: tl.constexpr,
    X_GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Bytes by bytes: a part has groups of activations of its own."""
    wait_for_earlier(PDL)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    groups_of_part = tl.cdiv(X_GROUPS, tl.num_programs(2))
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
        IN_ORDER,
    )
    present = in_x[:, None] & in_weight[None, :]
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    shape: Shape,
) -> None:
    """``out = x @ entries.T + bias + residual`` for contiguous activations ``[n, in_features]`` as they are.

    Of 4 bits, ``weight`` has ``words`` and ``scales`` the zeros, too.
    """
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
        **shape.constants,
        **shape.warps,
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
        **shape.constants,
        **shape.warps,
        IN_ORDER=takes_in_order(shape.BLOCK_M, x.q.device),
        X_GROUP=x.group,
        X_GROUPS=x.scales.shape[1],
    )
    fold(parts, bias, residual, out)


def _grid(num_rows: int, shape: Shape) -> tuple[int, int, int]:
    return -(-num_rows // shape.BLOCK_M), -(-shape.OUT // shape.BLOCK_N), shape.PARTS


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
                    for num_rows in (MOST_ROWS + 1, 64, 1024) if are_words(scheme) else (1, 32, 64, 1024):
                        shape = Shape.choose(num_rows, out_features, in_features, scheme, dtype, family)
                        found.append((shape, scheme, dtype))
    return list(dict.fromkeys(found))


def _product_configurations(family: str) -> list[Configuration]:
    found = [
        Configuration({"x": pointer(dtype), **_common(dtype, shape), **_kept(shape)}, shape.constants, **shape.warps)
        for shape, _, dtype in _shapes(family, rounded=False)
    ]
    return list({configuration.label: configuration for configuration in found}.values())


def _rounded_configurations(family: str) -> list[Configuration]:
    found = []
    for shape, scheme, dtype in _shapes(family, rounded=True):
        types = {"q": "*i8", "x_scales": "*fp32", "x_sums": "*i32", **_common(dtype, shape)}
        group = scheme.activation_group
        constants = {**shape.constants, "IN_ORDER": takes_in_order(shape.BLOCK_M, family)}
        constants |= {"X_GROUP": group, "X_GROUPS": -(-shape.IN // group)}
        found.append(Configuration(types, constants, **shape.warps))
    return list({configuration.label: configuration for configuration in found}.values())


def _kept(shape: Shape) -> dict[str, str | None]:
    return {"scales": "*i32", "zeros": None} if shape.BITS == 4 else {}


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


product = Kernel(product_kernel, _product_configurations)
rounded_product = Kernel(rounded_product_kernel, _rounded_configurations)
