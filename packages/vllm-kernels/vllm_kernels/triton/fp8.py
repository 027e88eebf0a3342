"""Products of e4m3 activations and weights, see ``ops.fp8``.

Where there are few rows, the columns are cut into parts (``product_parts``).
"""

from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.eager import fp8 as eager
from vllm_kernels.fp8_weight import Fp8Weight
from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.reference.fp8 import fill_rounded, rows_of
from vllm_kernels.rounded_activations import Rounded
from vllm_kernels.triton import few_rows
from vllm_kernels.triton.activation import gated_by
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import has_fp8, multiprocessors
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.product_parts import MOST_PARTS, finish, fold, parts_of
from vllm_kernels.triton.rounded import rms_norm, round_tokens
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work

BLOCK_K = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """How a product is cut.

    Args:
        OUT, IN: rows and columns of the weight.
        GROUP: rows and columns of a block, 0 where rows have scales.
        BLOCK_M, BLOCK_N: rows of ``x`` and of the weight in a tile.
        PARTS: of the columns.
        num_warps, num_stages: as Triton has them.
    """

    OUT: int
    IN: int
    GROUP: int
    BLOCK_M: int
    BLOCK_N: int
    PARTS: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(cls, num_rows: int, out_features: int, in_features: int, block: int | None, where: Where) -> "Shape":
        """By the numbers of the product alone, on a device or for a family.

        Always the same where a result must not depend on the batch.
        """
        alone = batch_invariance.enabled()
        block_m = 64 if alone else min(power_of_two(num_rows, 16), 128)
        choice = TILES.choose(where, rows=block_m, block=block or 0)
        tiles = -(-num_rows // block_m) * -(-out_features // choice["BLOCK_N"])
        useful = max(1, min(2 * multiprocessors(where) // tiles, in_features // 512, MOST_PARTS))
        parts = 1 if alone else 1 << (useful.bit_length() - 1)
        return cls(out_features, in_features, block or 0, block_m, PARTS=parts, **choice)

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with, warps and stages left out."""
        sizes = {**asdict(self), "BLOCK_K": BLOCK_K}
        return {name: value for name, value in sizes.items() if name not in ("PARTS", "num_warps", "num_stages")}

    @property
    def warps(self) -> dict[str, int]:
        """Warps, and stages of the pipeline of loads."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def _rule(rows: int, block: int) -> Choice:
    return {"BLOCK_N": 64 if rows == 16 else 128, "num_warps": 4 if rows <= 32 else 8, "num_stages": 4}


def _candidates(rows: int, block: int) -> dict[str, tuple[int, ...]]:
    # A tile has one scale for each block of columns.
    sizes = (32, 64, 128) if block else (32, 64, 128, 256)
    return {"BLOCK_N": sizes, "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)}


def _work(rows: int, block: int, BLOCK_N: int, num_warps: int, num_stages: int) -> Work:
    return Work("memory" if rows <= 32 else "matrix", rows * BLOCK_N, (rows + BLOCK_N) * BLOCK_K)


def _classes(family: str) -> list[ShapeClass]:
    if family == "sm_80":
        return []
    return [
        {"rows": rows, "block": block}
        for rows in (16, 32, 64, 128)
        for block in (0, BLOCK_K)
        if block or rows > few_rows.MOST_ROWS
    ]


TILES = Tunable("fp8_product_kernel", ("rows", "block"), _rule, _candidates, _classes, _work)


@triton.jit(do_not_specialize=["num_rows"])
def fp8_product_kernel(
    x,
    x_scales,
    weight,
    scales,
    bias,
    residual,
    out,
    parts,
    num_rows,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile ``[BLOCK_M, BLOCK_N]`` of ``x`` ``[num_rows, IN]`` times ``weight`` ``[OUT, IN]``, one part of the
    columns.

    ``x_scales`` are ``[num_rows]`` and ``scales`` ``[OUT]``; with GROUP (a multiple of BLOCK_N, equal to BLOCK_K),
    ``[num_rows, IN / GROUP]`` and ``[OUT / GROUP, IN / GROUP]``. Hopper's tensor cores keep 14 bits of a sum of fp8
    products, so sums move to fp32 registers once a turn.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    TURNS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    turns_of_part = tl.cdiv(TURNS, tl.num_programs(2))
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    in_x = row < num_rows
    in_weight = column < OUT
    x_row = x + row[:, None].to(tl.int64) * IN
    weight_row = weight + column[None, :].to(tl.int64) * IN
    for turn in range(part * turns_of_part, tl.minimum((part + 1) * turns_of_part, TURNS)):
        k = turn * BLOCK_K + tl.arange(0, BLOCK_K)
        if IN % BLOCK_K == 0:
            values = tl.load(x_row + k[None, :], mask=in_x[:, None], other=0.0)
            entries = tl.load(weight_row + k[:, None], mask=in_weight[None, :], other=0.0)
        else:
            values = tl.load(x_row + k[None, :], mask=in_x[:, None] & (k < IN)[None, :], other=0.0)
            entries = tl.load(weight_row + k[:, None], mask=in_weight[None, :] & (k < IN)[:, None], other=0.0)
        if GROUP > 0:
            product = tl.dot(values, entries, max_num_imprecise_acc=BLOCK_K)
            x_scale = tl.load(x_scales + row.to(tl.int64) * TURNS + turn, mask=in_x, other=0.0)
            scale = tl.load(scales + (tl.program_id(1) * BLOCK_N // GROUP) * TURNS + turn)
            result += product * (x_scale * scale)[:, None]
        else:
            result = tl.dot(values, entries, result, max_num_imprecise_acc=BLOCK_K)
    if GROUP == 0:
        result *= tl.load(x_scales + row, mask=in_x, other=0.0)[:, None]
        result *= tl.load(scales + column, mask=in_weight, other=0.0)[None, :]
    present = in_x[:, None] & in_weight[None, :]
    finish(result, row, column, present, bias, residual, out, parts, part, num_rows, OUT)


class TritonFp8Weight(Fp8Weight):
    """Entries of e4m3, row after row."""

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        fill_rounded(self, rows, start)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return rows_of(self, ids).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        return self.multiply_rounded(self._rounded(x), bias, residual, out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return self.multiply_gated_rounded(self._rounded(x), bias, activation)

    def multiply_normed(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        return self.multiply_rounded(self._normed(x, norm), bias, residual, out_dtype)

    def multiply_gated_normed(
        self, x: torch.Tensor, norm: RowNorm, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        return self.multiply_gated_rounded(self._normed(x, norm), bias, activation)

    def multiply_rounded(
        self, x: Rounded, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        entries, scales = x.values.contiguous(), x.scales.contiguous()
        count = len(entries)
        out = entries.new_empty(count, self.out_features, dtype=out_dtype)
        bias, residual = (None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        if self._are_few(count):
            self._multiply_few(out, entries, scales, bias, residual, None)
            return out
        if not count:
            return out
        shape = Shape.choose(count, self.out_features, self.in_features, self.block, entries.device)
        parts = parts_of(shape.PARTS, out)
        product.launch(
            (-(-count // shape.BLOCK_M), -(-shape.OUT // shape.BLOCK_N), shape.PARTS),
            entries,
            scales,
            self.entries,
            self.scales,
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

    def multiply_gated_rounded(self, x: Rounded, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        if not self._are_few(len(x.values)):
            return gated_by(self.multiply_rounded(x, bias, None, self.dtype), activation)
        out = x.values.new_empty(len(x.values), self.out_features // 2, dtype=self.dtype)
        bias = None if bias is None else bias.contiguous()
        self._multiply_few(out, x.values.contiguous(), x.scales.contiguous(), bias, None, activation)
        return out

    def _rounded(self, x: torch.Tensor) -> Rounded:
        if self.input_scale is None:
            return round_activations(x, self.block)
        return round_tokens(x, torch.float8_e4m3fn, self.input_scale)

    def _normed(self, x: torch.Tensor, norm: RowNorm) -> Rounded:
        """Norm and rounding, in one pass where rows have a scale, which gives the numbers of the two done apart."""
        if self.block is not None:
            return self._rounded(norm.of(x))
        return rms_norm(x, norm.weight, norm.eps, torch.float8_e4m3fn, self.input_scale, norm.unit_offset)

    def _are_few(self, count: int) -> bool:
        """Whether the kernel for few rows serves them: not where a result must be the same in any batch."""
        return self.block is None and count <= few_rows.MOST_ROWS and not batch_invariance.enabled()

    def _multiply_few(
        self,
        out: torch.Tensor,
        entries: torch.Tensor,
        x_scales: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation | None,
    ) -> None:
        few_rows.multiply(
            entries,
            self.entries,
            bias,
            residual,
            out,
            activation=activation,
            norm=None,
            scales=(x_scales, self.scales),
        )


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, block: int | None, gated: bool) -> Fp8Weight:
    if dtype not in FLOATS or not has_fp8(torch.get_default_device()):
        return eager.new_weight(out_features, in_features, dtype, block, gated)
    return TritonFp8Weight(out_features, in_features, dtype, block, gated=gated)


def round_activations(x: torch.Tensor, group: int | None) -> Rounded:
    """Activations ``[n, in_features]`` -> e4m3, and fp32 scales ``[n, in_features / group]``, or ``[n]`` of rows."""
    if group is None:
        return round_tokens(x, torch.float8_e4m3fn, None)
    # A group is a short row.
    values, scales = round_tokens(x.reshape(-1, group), torch.float8_e4m3fn, None)
    return Rounded(values.view(x.shape), scales.view(len(x), x.shape[1] // group))


_LAYERS = ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (6144, 4096), (4096, 14336), (7168, 2048))
"""Rows and columns of projections of the Qwen 3 0.6B, the Llama 8B and the DeepSeek-V3 shapes."""


def _shapes(family: str) -> list[Shape]:
    found = [
        Shape.choose(num_rows, out_features, in_features, block, family)
        for out_features, in_features in _LAYERS
        for block in (None, BLOCK_K)
        for num_rows in (1, 32, 64, 1024)
        if block or num_rows > few_rows.MOST_ROWS
    ]
    return list(dict.fromkeys(found)) if family != "sm_80" else []


def _product_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        for shape in _shapes(family):
            types: dict[str, str | None] = {"x": "*fp8e4nv", "x_scales": "*fp32", "weight": "*fp8e4nv"}
            types |= {"scales": "*fp32", "bias": None, "residual": pointer(dtype), "out": pointer(dtype)}
            types |= {"parts": "*fp32" if shape.PARTS > 1 else None, "num_rows": "i32"}
            found.append(Configuration(types, shape.constants, **shape.warps))
    return list({configuration.label: configuration for configuration in found}.values())


product = Kernel(fp8_product_kernel, _product_configurations)
