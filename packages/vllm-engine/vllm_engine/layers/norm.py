"""Normalisation layers: weights here, arithmetic in ``vllm_kernels``."""

from typing import overload

import torch
from torch import Tensor, nn

from vllm_engine.layers.module import TensorModule
from vllm_kernels.linear_weight import RowNorm
from vllm_kernels.ops.norm import fused_add_rms_norm, layer_norm, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm (https://arxiv.org/abs/1910.07467). ``unit_offset``: Gemma's weights count from 1."""

    def __init__(self, size: int, eps: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Norm of ``x`` over its last dimension; with a residual, ``(norm of the sum, the sum)``."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)
        return fused_add_rms_norm(x, residual, self.weight, self.eps, unit_offset=self.unit_offset)

    def before_projection(self) -> RowNorm:
        """As an argument of the projection that comes next, which may normalise on the way."""
        return RowNorm(self.weight, self.eps, self.unit_offset)

    def fill_identity(self) -> None:
        """Weights that scale by one (for dummy models)."""
        self.weight.fill_(0.0 if self.unit_offset else 1.0)


class LayerNorm(TensorModule):
    """Layer norm (https://arxiv.org/abs/1607.06450); ``affine`` adds weight and bias."""

    def __init__(self, size: int, eps: float, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False) if affine else None
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Norm of ``x`` over its last dimension."""
        return layer_norm(x, self.weight, self.bias, self.eps)

    def fill_identity(self) -> None:
        """Weights that scale by one and add nothing (for dummy models)."""
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1.0)
            self.bias.fill_(0.0)
