from collections.abc import Callable, Mapping
from types import ModuleType

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


class RoundedAfter:
    """The norms and gates of a face that has no kernels which round: its own, and ``round_tokens`` after them.

    Args:
        norm: the face's module of norms.
        gates: activation -> its gated product.
    """

    def __init__(self, norm: ModuleType, gates: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self._norm = norm
        self._gates = gates

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        dtype: torch.dtype,
        scale: torch.Tensor | None,
        unit_offset: bool,
    ) -> Rounded:
        return round_tokens(self._norm.rms_norm(x, weight, eps, unit_offset), dtype, scale)

    def fused_add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        dtype: torch.dtype,
        scale: torch.Tensor | None,
        unit_offset: bool,
    ) -> tuple[Rounded, torch.Tensor]:
        normed, new_residual = self._norm.fused_add_rms_norm(x, residual, weight, eps, unit_offset)
        return round_tokens(normed, dtype, scale), new_residual

    def activation_and_mul(
        self, x: torch.Tensor, activation: Activation, dtype: torch.dtype, scale: torch.Tensor | None
    ) -> Rounded:
        return round_tokens(self._gates[activation](x), dtype, scale)


_face = RoundedAfter(norm, GATES)
rms_norm, fused_add_rms_norm, activation_and_mul = _face.rms_norm, _face.fused_add_rms_norm, _face.activation_and_mul


def _entries(units: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return units.nan_to_num(0.0, torch.inf, -torch.inf).round().clamp(-128, 127).to(dtype)
    return units.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
