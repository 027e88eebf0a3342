from collections.abc import Callable

import torch

from vllm_kernels.linear_weight import Activation
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight
from vllm_kernels.reference.linear import GATES

TINY = 1e-30
"""Activations of a group whose greatest is below this count as 0: the quotient 127 / max|x| must be a float."""


class CanonicalWeight(QuantizedWeight):
    """Entries, scales and zeros as they are, one number an element."""

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated=gated)
        self.q = torch.empty(out_features, in_features, dtype=torch.uint8)
        self.scales = torch.empty(out_features, self.groups)
        self.zeros = torch.empty(out_features, self.groups, dtype=torch.uint8)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_quantized(*quantize(rows, self.scheme), start)

    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        end = start + len(q)
        self.q[start:end], self.scales[start:end], self.zeros[start:end] = q, kept_scales(scales), zeros

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out_of_order(self._entries(torch.float32)[ids]).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = self._wide(x, bias)
        if residual is not None:
            result = result + residual.to(result.dtype)
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return GATES[activation](self._wide(x, bias)).to(x.dtype)

    def _wide(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = self.in_order(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.scheme.activation_bits:
            x = rounded_activations(x, self.scheme.activation_group)
        result = x.to(wide) @ self._entries(wide).T
        return result if bias is None else result + bias.to(wide)

    def _entries(self, dtype: torch.dtype) -> torch.Tensor:
        size = self.scheme.group_size or self.in_features
        scales, zeros = (_spread(table, size, self.in_features) for table in (self.scales, self.zeros))
        return (self.q.to(dtype) - zeros.to(dtype)) * scales.to(dtype)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
) -> QuantizedWeight:
    return CanonicalWeight(out_features, in_features, dtype, scheme, gated)


def quantize(rows: torch.Tensor, scheme: Quantization) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of floats ``[n, in_features]`` -> q, scales and zeros, as ``ops.quantization.new_weight`` says."""
    rows = rows.float()
    in_features = rows.shape[1]
    size = scheme.group_size or in_features
    greatest, least = _of_groups(rows, size, torch.amax), _of_groups(rows, size, torch.amin)
    if scheme.bits == 8:
        scales = kept_scales(torch.maximum(greatest, -least) / 127)
        zeros = torch.full_like(scales, 128)
    else:
        greatest, least = greatest.clamp(min=0), least.clamp(max=0)
        scales = kept_scales((greatest - least) / 15)
        zeros = torch.where(scales > 0, -least / scales, 0.0).round().clamp(0, 15)
    wide_scales, wide_zeros = _spread(scales, size, in_features), _spread(zeros, size, in_features)
    units = torch.where(wide_scales > 0, rows / wide_scales, 0.0).round()
    q = (units + wide_zeros).clamp(0, (1 << scheme.bits) - 1)
    return q.to(torch.uint8), scales, zeros.to(torch.uint8)


def kept_scales(scales: torch.Tensor) -> torch.Tensor:
    """What is kept of scales ``[n, groups]``, as fp32.

    One of a row is kept in fp32. Several are kept as fp16 times a power of two of the row, which brings the greatest
    into [2^14, 2^15): 11 significant bits for all that are at least 2^-28 of it.
    """
    scales = scales.float()
    if scales.shape[1] == 1:
        return scales
    factor = row_factors(scales)
    return (scales / factor).half().float() * factor


def row_factors(scales: torch.Tensor) -> torch.Tensor:
    """The power of two of each row of ``kept_scales``: fp32 ``[n, 1]``."""
    greatest = scales.float().amax(dim=1, keepdim=True)
    return torch.ldexp(torch.ones_like(greatest), (torch.frexp(greatest).exponent - 15).clamp(min=-126))


def rounded_activations(x: torch.Tensor, group: int) -> torch.Tensor:
    """Activations ``[n, in_features]`` -> the numbers that their 8 bits stand for."""
    peak = _of_groups(x.float().abs(), group, torch.amax)
    peak = torch.where(peak < TINY, 0.0, peak)
    # A tensor over a tensor: torch rounds the quotient of a number and a tensor twice.
    units_of_one = torch.where(peak == 0, 0.0, torch.full_like(peak, 127) / peak)
    units = (x.float() * _spread(units_of_one, group, x.shape[1])).round()
    wide = torch.promote_types(x.dtype, torch.float32)
    return units.to(wide) * _spread(peak / 127, group, x.shape[1]).to(wide)


def _of_groups(rows: torch.Tensor, size: int, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """``[n, in_features]`` -> ``[n, groups]``."""
    return torch.cat([reduce(group, 1, True) for group in rows.split(size, dim=1)], dim=1)


def _spread(table: torch.Tensor, size: int, in_features: int) -> torch.Tensor:
    """Numbers of groups ``[n, groups]`` -> of columns ``[n, in_features]``."""
    return table.repeat_interleave(size, dim=1)[:, :in_features]
