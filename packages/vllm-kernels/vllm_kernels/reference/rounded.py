import torch

from vllm_kernels.linear_weight import Activation
from vllm_kernels.reference import norm
from vllm_kernels.reference.linear import GATES
from vllm_kernels.rounded_activations import Rounded

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
TINY = 1e-30
"""Tokens whose greatest entry is below this are zeros in int8: the quotient 127 / max|x| must be a float."""


def round_tokens(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> Rounded:
    wide = x.float()
    if scale is not None:
        # A tensor over a tensor of its shape: torch rounds the quotient of a tensor and a number twice.
        units = wide / scale.view(()).expand_as(wide)
        return Rounded(_entries(units, dtype), scale.view(()).expand(x.shape[:-1]).contiguous())
    peak = wide.abs().amax(dim=-1, keepdim=True)
    finite = peak.isfinite()
    top = torch.full_like(peak, LARGEST[dtype])
    if dtype == torch.int8:
        peak = torch.where(peak < TINY, 0.0, peak)
        units = wide * torch.where(peak > 0, top / peak, 0.0)
    else:
        divisors = peak / top
        units = torch.where(divisors > 0, wide / torch.where(divisors > 0, divisors, 1.0), 0.0)
    values = _entries(torch.where(finite, units, 0.0), dtype)
    return Rounded(values, torch.where(finite, peak / top, torch.nan).squeeze(-1))


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> Rounded:
    return round_tokens(norm.rms_norm(x, weight, eps, unit_offset), dtype, scale)


def fused_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> tuple[Rounded, torch.Tensor]:
    normed, new_residual = norm.fused_add_rms_norm(x, residual, weight, eps, unit_offset)
    return round_tokens(normed, dtype, scale), new_residual


def activation_and_mul(
    x: torch.Tensor, activation: Activation, dtype: torch.dtype, scale: torch.Tensor | None
) -> Rounded:
    return round_tokens(GATES[activation](x), dtype, scale)


def gate(x: torch.Tensor, activation: Activation, dtype: torch.dtype) -> torch.Tensor:
    """Of fp32 ``[n, 2 * d]``, to another type."""
    return GATES[activation](x).to(dtype)


def _entries(units: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return units.nan_to_num(0.0, torch.inf, -torch.inf).round().clamp(-128, 127).to(dtype)
    return units.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
