"""Products of few rows are ours, norm, bias, residual and gate included; of many rows cuBLAS's, through torch."""

import torch
from torch.nn import functional

from vllm_kernels.linear_weight import Activation, LinearWeight, RowNorm
from vllm_kernels.reference.linear import PlainWeight
from vllm_kernels.triton import activation as activations
from vllm_kernels.triton import few_rows, one_row
from vllm_kernels.triton.kernel import FLOATS

GATES = {
    "silu": activations.silu_and_mul,
    "gelu": activations.gelu_and_mul,
    "gelu_tanh": activations.gelu_tanh_and_mul,
    "swigluoai": activations.swigluoai_and_mul,
}


class GPUWeight(PlainWeight):
    """Multiplied by torch's own ``linear`` where there are more than a few rows: rounded before what is added to it."""

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        if _are_few(x):
            return _multiply_few(x, self.tensor, bias, residual, out_dtype)
        result = functional.linear(x, self.tensor, bias)
        if residual is not None:
            result = result + residual
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        if _are_few(x):
            return _multiply_few(x, self.tensor, bias, None, x.dtype, activation)
        return GATES[activation](functional.linear(x, self.tensor, bias))

    def multiply_normed(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        if _may_be_normed(x):
            return _multiply_few(x, self.tensor, bias, residual, out_dtype, norm=norm)
        return super().multiply_normed(x, norm, bias, residual, out_dtype)

    def multiply_gated_normed(
        self, x: torch.Tensor, norm: RowNorm, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        if _may_be_normed(x):
            return _multiply_few(x, self.tensor, bias, None, x.dtype, activation, norm)
        return super().multiply_gated_normed(x, norm, bias, activation)


def _are_few(x: torch.Tensor) -> bool:
    return len(x) <= few_rows.MOST_ROWS and x.dtype in FLOATS


def _may_be_normed(x: torch.Tensor) -> bool:
    """Whether the norm of these rows can be part of their product."""
    return _are_few(x) and (len(x) == 1 or x.dtype != torch.float16)


def _multiply_few(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype,
    activation: Activation | None = None,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    out = x.new_empty(len(x), len(weight) // (1 if activation is None else 2), dtype=out_dtype)
    kernel = one_row if len(x) == 1 else few_rows
    kernel.multiply(
        x.contiguous(),
        weight,
        None if bias is None else bias.contiguous(),
        None if residual is None else residual.contiguous(),
        out,
        activation=activation,
        norm=None if norm is None else norm._replace(weight=norm.weight.contiguous()),
    )
    return out


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return GPUWeight(out_features, in_features, dtype, gated)
