from itertools import pairwise

import torch

from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.mxfp4_weight import BLOCK, NAN_SCALE, Mxfp4Weight
from vllm_kernels.reference.linear import PlainWeight

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of an entry stand for; the fourth is the sign."""


class FloatProductWeight(Mxfp4Weight):
    """Multiplied as the fp32 numbers that its entries stand for."""

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_mxfp4(*rounded(rows), start)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return numbers(self.entries[ids], self.scales[ids]).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        return self._plain().multiply(x, bias, residual, out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return self._plain().multiply_gated(x, bias, activation)

    def _plain(self) -> PlainWeight:
        plain = PlainWeight(0, self.in_features, self.dtype, self.gated)
        plain.tensor = numbers(self.entries, self.scales)
        return plain


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return FloatProductWeight(out_features, in_features, dtype, gated=gated)


def numbers(entries: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What entries ``[n, k / 2]`` and scales ``[n, k / 32]`` stand for: fp32 ``[n, k]``."""
    table = torch.tensor([*E2M1, *(-number for number in E2M1)], device=entries.device)
    units = table[torch.stack((entries & 15, entries >> 4), dim=-1).flatten(1).long()]
    exponents = scales.to(torch.int32) - 127
    powers = torch.where(
        scales == NAN_SCALE, torch.nan, torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    )
    result: torch.Tensor = units.unflatten(1, (-1, BLOCK)) * powers.unsqueeze(2)
    return result.flatten(1)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of floats ``[n, k]`` -> entries ``[n, k / 2]`` and scales ``[n, k / 32]``, see ``ops.mxfp4.new_weight``."""
    blocks = rows.float().unflatten(1, (-1, BLOCK))
    peak = blocks.abs().amax(dim=2, keepdim=True)
    # frexp's fraction is below 1, so its exponent is one more than that of the greatest power of two below; 4 is 2^2.
    exponents = torch.where(peak > 0, torch.frexp(peak).exponent - 3, -127).clamp(min=-127)
    magnitudes = torch.ldexp(blocks, -exponents).abs()
    # How many of the middles between two neighbours lie below; a middle itself goes to the even one.
    places = torch.zeros_like(magnitudes, dtype=torch.uint8)
    for place, (low, high) in enumerate(pairwise(E2M1)):
        middle = (low + high) / 2
        places += magnitudes >= middle if place % 2 else magnitudes > middle
    codes = (places | blocks.signbit().to(torch.uint8) << 3).flatten(1)
    finite = peak.isfinite()
    scales = torch.where(finite, exponents + 127, NAN_SCALE).squeeze(2).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4, scales
