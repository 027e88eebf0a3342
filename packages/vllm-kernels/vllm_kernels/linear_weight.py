"""What every face's weight of a projection offers."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch

from vllm_kernels.ops.norm import rms_norm
from vllm_kernels.weight import Weight

Activation = Literal["silu", "gelu", "gelu_tanh", "swigluoai"]
"""Of a gated projection; ``gelu`` is the exact one, ``swigluoai`` that of gpt-oss. See ``ops.activation``."""


class RowNorm(NamedTuple):
    """The RMS norm that rows go through before a projection: arguments of ``ops.norm.rms_norm``."""

    weight: torch.Tensor
    eps: float
    unit_offset: bool = False

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of rows ``[n, in_features]``, rounded."""
        return rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)


def outside(num_rows: int) -> IndexError:
    """What is raised for an id that no row has."""
    return IndexError(f"an id is outside of the {num_rows} rows")


class LinearWeight(Weight, ABC):
    """The weight ``[out_features, in_features]`` of a projection, in the layout that its face multiplies fastest.

    A ``gated`` weight holds two projections of the same size, one above the other as in the checkpoints: rows
    ``[0, out_features / 2)`` are the gate's, the others the value's.

    Args:
        out_features, in_features: rows and columns, the gate's rows included.
        dtype: of activations and results.
        gated: whether ``multiply_gated`` serves it, and ``multiply`` does not.
    """

    checks_ids = False
    """Whether ``rows`` itself raises ``IndexError`` for an id that is outside."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, *, gated: bool = False) -> None:
        self.out_features = out_features
        self.in_features = in_features
        self.dtype = dtype
        self.gated = gated

    @abstractmethod
    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        """Store rows ``[start, start + len(rows))``: ``[n, in_features]``, any floating type and any strides."""

    @abstractmethod
    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows as an embedding table has them: int64 ``[n]`` -> ``[n, in_features]`` in ``dtype``."""

    @abstractmethod
    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """``x`` ``[n, in_features]`` -> ``[n, out_features]``; see ``ops.linear.linear``. Arguments are checked."""

    @abstractmethod
    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """``x`` ``[n, in_features]`` -> ``[n, out_features / 2]``; see ``ops.linear.gated_linear``."""

    def multiply_normed(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """``multiply`` of normalised rows. Faces that do both at once have their own."""
        return self.multiply(norm.of(x), bias, residual, out_dtype)

    def multiply_gated_normed(
        self, x: torch.Tensor, norm: RowNorm, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        """``multiply_gated`` of normalised rows."""
        return self.multiply_gated(norm.of(x), bias, activation)
