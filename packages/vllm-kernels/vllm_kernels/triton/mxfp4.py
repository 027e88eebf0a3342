"""Products of activations and weights of MXFP4, see ``ops.mxfp4``.

Where there are few rows, the columns are cut into parts (``product_parts``).
"""

from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.eager import mxfp4 as eager
from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.mxfp4_weight import NAN_SCALE, Mxfp4Weight
from vllm_kernels.reference.mxfp4 import numbers, rounded
from vllm_kernels.triton.activation import gated_by
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.mxfp4_sums import sum_of_mxfp4
from vllm_kernels.triton.product_parts import MOST_PARTS, finish, fold, parts_of
from vllm_kernels.triton.quantized_sums import takes_in_order
from vllm_kernels.triton.tuning import Where


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product is cut.

    Args:
        OUT, IN: rows and columns of the weight.
        BLOCK_M, BLOCK_N: rows of ``x`` and of the weight in a tile.
        BLOCK_K: columns of one turn of the loop.
        IN_ORDER: see ``mxfp4_sums.add_product_of_columns``.
        PARTS: of the columns.
    """

    OUT: int
    IN: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    IN_ORDER: bool
    PARTS: int

    @classmethod
    def choose(cls, num_rows: int, out_features: int, in_features: int, dtype: torch.dtype, where: Where) -> "Shape":
        """By the numbers of the product alone, on a device or for a family.

        Always the same where a result must not depend on the batch.
        """
        if batch_invariance.enabled():
            turn = columns_of_turn(in_features, 64, dtype)
            return cls(out_features, in_features, 64, 128, turn, takes_in_order(64, where), 1)
        block_m = min(power_of_two(num_rows, 16), 64 if dtype == torch.float32 else 128)
        block_n = 64 if num_rows <= 16 else 128
        tiles = -(-num_rows // block_m) * -(-out_features // block_n)
        useful = max(1, min(2 * multiprocessors(where) // max(tiles, 1), in_features // 512, MOST_PARTS))
        parts = 1 << (useful.bit_length() - 1)
        turn = columns_of_turn(in_features, block_m, dtype)
        return cls(out_features, in_features, block_m, block_n, turn, takes_in_order(block_m, where), parts)

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {name: value for name, value in asdict(self).items() if name != "PARTS"}

    @property
    def warps(self) -> dict[str, int]:
        """Warps, and stages of the pipeline of loads."""
        return {"num_warps": 4 if self.BLOCK_M <= 32 else 8, "num_stages": 4 if self.BLOCK_M <= 32 else 3}


def columns_of_turn(in_features: int, block_m: int, dtype: torch.dtype) -> int:
    """32 to 128, so that few are left over at the end."""
    most = 128 if block_m <= 32 and dtype != torch.float32 else 64
    return next((size for size in (128, 64, 32) if size <= most and in_features % size == 0), 32)


@triton.jit(do_not_specialize=["num_rows"])
def mxfp4_product_kernel(
    x,
    weight,
    scales,
    tops,
    bias,
    residual,
    out,
    parts,
    num_rows,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_ORDER: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile ``[BLOCK_M, BLOCK_N]`` of ``x`` ``[num_rows, IN]`` times ``weight`` (bytes ``[OUT, IN / 2]``, scales
    ``[OUT, IN / 32]``, tops ``[OUT]``), one part of the columns.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    TURNS: tl.constexpr = IN // BLOCK_K
    turns_of_part = tl.cdiv(TURNS, tl.num_programs(2))
    in_x = row < num_rows
    in_weight = column < OUT
    result = sum_of_mxfp4(
        x + row.to(tl.int64) * IN,
        in_x,
        weight,
        scales,
        tops,
        column,
        in_weight,
        part * turns_of_part,
        tl.minimum((part + 1) * turns_of_part, TURNS),
        IN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        IN_ORDER,
    )
    present = in_x[:, None] & in_weight[None, :]
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT)


class TritonMxfp4Weight(Mxfp4Weight):
    """Bytes as a checkpoint has them, made to numbers in registers, tile by tile; and the greatest scale of a row."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, *, gated: bool = False) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.tops = torch.empty(out_features, dtype=torch.uint8)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_mxfp4(*rounded(rows), start)

    def fill_mxfp4(self, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        super().fill_mxfp4(entries, scales, start)
        self.tops[start : start + len(entries)] = tops_of(scales)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return numbers(self.entries[ids], self.scales[ids]).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        x, count = x.contiguous(), len(x)
        out = x.new_empty(count, self.out_features, dtype=out_dtype)
        shape = Shape.choose(count, self.out_features, self.in_features, x.dtype, x.device)
        bias, residual = (None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        parts = parts_of(shape.PARTS, out)
        product.launch(
            (-(-count // shape.BLOCK_M), -(-shape.OUT // shape.BLOCK_N), shape.PARTS),
            x,
            self.entries,
            self.scales,
            self.tops,
            bias,
            residual,
            out,
            parts,
            count,
            **shape.constants,
            **shape.warps,
        )
        fold(parts, bias, residual, out)
        return out

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return gated_by(self.multiply(x, bias, None, x.dtype), activation)


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    if dtype not in FLOATS:
        return eager.new_weight(out_features, in_features, dtype, gated)
    return TritonMxfp4Weight(out_features, in_features, dtype, gated=gated)


def tops_of(scales: torch.Tensor) -> torch.Tensor:
    """The greatest scale of each row ``[.., n]``, leaving out NaN, and at least 1, which is a normal number of fp32."""
    return scales.where(scales != NAN_SCALE, 0).amax(dim=-1).clamp(min=1)


_LAYERS = ((5120, 2880), (2880, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Rows and columns of projections of the gpt-oss and the Llama 8B shapes."""


def _shapes(family: str) -> list[tuple[Shape, torch.dtype]]:
    found = [
        (Shape.choose(num_rows, out_features, in_features, dtype, family), dtype)
        for dtype in (torch.bfloat16, torch.float16)
        for out_features, in_features in _LAYERS
        for num_rows in (1, 32, 64, 1024)
    ]
    return list(dict.fromkeys(found))


def _product_configurations(family: str) -> list[Configuration]:
    found = []
    for shape, dtype in _shapes(family):
        types: dict[str, str | None] = {"x": pointer(dtype), "weight": "*u8", "scales": "*u8", "tops": "*u8"}
        types |= {"bias": None, "residual": pointer(dtype), "out": pointer(dtype)}
        types |= {"parts": "*fp32" if shape.PARTS > 1 else None, "num_rows": "i32"}
        found.append(Configuration(types, shape.constants, **shape.warps))
    return list({configuration.label: configuration for configuration in found}.values())


product = Kernel(mxfp4_product_kernel, _product_configurations)
