"""What every face's weight of a mixture of experts offers, and how tokens are sent to experts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch

from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.weight import Weight

Scheme = Quantization | Literal["fp8", "mxfp4"] | None
"""How entries of experts are stored: small integers, e4m3 with a scale for each row, MXFP4, or in the type of ``x``."""

LARGEST_FP8 = 448.0
"""The largest number of e4m3."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Where each token goes.

    Args:
        experts: int32 ``[n, top_k]``. An id outside of ``[0, num_experts)`` is nobody's: it adds nothing.
        weights: fp32 (fp64 of logits in fp64) ``[n, top_k]``, of what the experts make of the token.
    """

    experts: torch.Tensor
    weights: torch.Tensor


class ExpertWeight(Weight, ABC):
    """One projection ``[out_features, in_features]`` of each expert, in the layout that its face multiplies fastest.

    Args:
        num_experts: how many.
        out_features, in_features: rows and columns of an expert; gate and value together where ``gated``.
        dtype: of activations and results.
        scheme: how entries are stored.
        gated: rows ``[0, out_features / 2)`` are a gate's, the others the value's.
    """

    def __init__(
        self, num_experts: int, out_features: int, in_features: int, dtype: torch.dtype, scheme: Scheme, gated: bool
    ) -> None:
        self.num_experts = num_experts
        self.out_features = out_features
        self.in_features = in_features
        self.dtype = dtype
        self.scheme = scheme
        self.gated = gated

    @property
    def groups(self) -> int:
        """Scales of a row."""
        size = self.scheme.group_size if isinstance(self.scheme, Quantization) else None
        return -(-self.in_features // (size or self.in_features))

    @abstractmethod
    def fill(self, expert: int, rows: torch.Tensor, start: int) -> None:
        """Store rows of an expert: ``[n, in_features]``, any floating type and strides. Arguments are checked."""

    @abstractmethod
    def fill_quantized(
        self, expert: int, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int
    ) -> None:
        """Store rows of small integers; see ``ops.quantization.fill_quantized``. Arguments are checked."""

    @abstractmethod
    def fill_fp8(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Store rows of e4m3 ``[n, in_features]`` with scales ``[n]``. Arguments are checked."""

    @abstractmethod
    def fill_mxfp4(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Store rows of MXFP4 ``[n, in_features / 2]`` with scales ``[n, in_features / 32]``. Arguments are checked."""

    @abstractmethod
    def rows(self, expert: int, ids: torch.Tensor) -> torch.Tensor:
        """What is stored of rows ``ids`` (int64 ``[n]``): ``[n, in_features]`` in ``dtype``. Ids are checked."""
