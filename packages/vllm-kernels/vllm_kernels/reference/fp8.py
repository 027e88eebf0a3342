import torch
from torch.nn import functional

from vllm_kernels.fp8_weight import Fp8Weight
from vllm_kernels.linear_weight import Activation
from vllm_kernels.reference.linear import GATES
from vllm_kernels.reference.rounded import round_tokens
from vllm_kernels.rounded_activations import Rounded

LARGEST = 448.0


class FloatProductWeight(Fp8Weight):
    """Entries of e4m3 that are multiplied as floats."""

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        fill_rounded(self, rows, start)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return rows_of(self, ids).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = self._wide(x, bias)
        if residual is not None:
            result = result + residual.to(result.dtype)
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return GATES[activation](self._wide(x, bias)).to(x.dtype)

    def multiply_rounded(
        self, x: Rounded, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = self._product(x.values, x.scales.unsqueeze(1), bias, torch.float32)
        if residual is not None:
            result = result + residual.to(result.dtype)
        return result.to(out_dtype)

    def _wide(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.input_scale is None:
            return self._product(*rounded(x, self.block), bias, wide)
        entries, scales = round_tokens(x, torch.float8_e4m3fn, self.input_scale)
        return self._product(entries, scales.unsqueeze(1), bias, wide)

    def _product(
        self, entries: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, wide: torch.dtype
    ) -> torch.Tensor:
        """Of activations ``[n, in_features]`` with scales ``[n, groups]``."""
        numbers = (entries.to(wide).unflatten(1, (scales.shape[1], -1)) * scales.to(wide).unsqueeze(2)).flatten(1)
        ids = torch.arange(self.out_features, device=entries.device)
        result: torch.Tensor = numbers @ rows_of(self, ids).to(wide).T
        return result if bias is None else result + bias.to(wide)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, block: int | None, gated: bool
) -> FloatProductWeight:
    return FloatProductWeight(out_features, in_features, dtype, block, gated=gated)


def rows_of(weight: Fp8Weight, ids: torch.Tensor) -> torch.Tensor:
    """What entries and scales of rows stand for, fp32 ``[n, in_features]``."""
    size = weight.block or 1
    columns = weight.block or weight.in_features
    scales = weight.scales[ids // size].repeat_interleave(columns, dim=1)
    return weight.entries.view(torch.uint8)[ids].view(torch.float8_e4m3fn).float() * scales


def rounded(x: torch.Tensor, group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``[n, k]`` -> e4m3, and fp32 scales ``[n, k / group]``; NaN for a group that is not finite, 0 for zeros."""
    groups = x.float().unflatten(1, (-1, group or x.shape[1]))
    entries, scales = _to_fp8(groups, groups.abs().amax(dim=2, keepdim=True))
    return entries.flatten(1), scales.squeeze(2)


def fill_rounded(weight: Fp8Weight, rows: torch.Tensor, start: int) -> None:
    """Round rows of floats, by rows or by blocks. Raises ``ValueError`` for a start inside of a block."""
    rows = rows.float()
    if weight.block is None:
        weight.fill_fp8(*rounded(rows, None), start)
        return
    size, count = weight.block, len(rows)
    if start % size:
        raise ValueError(f"start must be a multiple of block={size}, got {start}")
    blocks = functional.pad(rows, (0, 0, 0, -count % size)).unflatten(1, (-1, size)).unflatten(0, (-1, size))
    entries, scales = _to_fp8(blocks, blocks.abs().amax(dim=(1, 3), keepdim=True))
    weight.fill_fp8(entries.flatten(2).flatten(0, 1)[:count], scales.flatten(1), start)


def _to_fp8(x: torch.Tensor, peak: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` over ``peak / 448``, rounded; and that scale."""
    # A tensor over a tensor: torch rounds the quotient of a tensor and a number twice.
    scales = torch.where(peak.isfinite(), peak / torch.full_like(peak, LARGEST), torch.nan)
    units = torch.where(scales > 0, x / torch.where(scales > 0, scales, 1.0), 0.0)
    return units.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales
