"""What every face's quantised weight offers beside ``LinearWeight``."""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from vllm_kernels.rounded_activations import Rounded
from vllm_kernels.rounded_input_weight import RoundedInputWeight

ACTIVATION_GROUP = 512
"""Columns of ``x`` that share a scale, at most: up to here a dot product of bytes has 24 bits, which floats hold."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How numbers are stored.

    Args:
        bits: of an entry of the weight: 8 or 4.
        group_size: columns of a row that share a scale and a zero, or None: the whole row does.
        activation_bits: 8 when activations are quantised on the fly, None when they stay as they are.
    """

    bits: int
    group_size: int | None
    activation_bits: int | None

    @property
    def activation_group(self) -> int:
        """Columns of a row of ``x`` that share a scale."""
        return min(self.group_size or ACTIVATION_GROUP, ACTIVATION_GROUP)


class QuantizedWeight(RoundedInputWeight):
    """A weight of small integers: entry = (q - zero) * scale, with scale and zero for each row and group of columns.

    Args:
        out_features, in_features, dtype, gated: see ``LinearWeight``.
        scheme: how it is stored; ``group_size`` is below ``in_features`` (None otherwise).
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, *, gated: bool = False
    ) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.scheme = scheme
        self.groups = -(-in_features // (scheme.group_size or in_features))
        self.order: torch.Tensor | None = None
        """Column of ``x`` that each stored column meets; None where they are in order."""

    @abstractmethod
    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        """Store rows that are quantised already; see ``ops.quantization.fill_quantized``. Arguments are checked."""

    def multiply_rounded(
        self, x: Rounded, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """In fp32, by the rows of the weight in ``dtype``."""
        entries = self.rows(torch.arange(self.out_features, device=x.values.device)).float()
        result = x.values.float() @ entries.T * x.scales.unsqueeze(1)
        for extra in (bias, residual):
            if extra is not None:
                result = result + extra.float()
        return result.to(out_dtype)

    def in_order(self, x: torch.Tensor) -> torch.Tensor:
        """Activations ``[n, in_features]`` in the order of the stored columns."""
        return x if self.order is None else x[:, self.order]

    def out_of_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the weight as they are stored -> in the order of ``x``."""
        if self.order is None:
            return rows
        result = torch.empty_like(rows)
        result[:, self.order] = rows
        return result
