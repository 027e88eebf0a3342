"""Products of few rows are ours, norm, bias, residual and gate included; of many rows cuBLAS's, through torch."""

import torch
from torch.nn import functional

from vllm_kernels.linear_weight import Activation, LinearWeight, RowNorm
from vllm_kernels.reference.linear import PlainWeight
from vllm_kernels.triton import activation as activations
from vllm_kernels.triton import few_rows

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
        if few_rows.takes(x):
            return few_rows.multiply(x, self.tensor, bias, residual, out_dtype)
        result = functional.linear(x, self.tensor, bias)
        if residual is not None:
            result = result + residual
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        if few_rows.takes(x):
            return few_rows.multiply(x, self.tensor, bias, None, x.dtype, activation=activation)
        return GATES[activation](functional.linear(x, self.tensor, bias))

    def multiply_normed(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        if few_rows.takes_norm(x):
            return few_rows.multiply(x, self.tensor, bias, residual, out_dtype, norm=norm)
        return super().multiply_normed(x, norm, bias, residual, out_dtype)

    def multiply_gated_normed(
        self, x: torch.Tensor, norm: RowNorm, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        if few_rows.takes_norm(x):
            return few_rows.multiply(x, self.tensor, bias, None, x.dtype, activation=activation, norm=norm)
        return super().multiply_gated_normed(x, norm, bias, activation)


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return GPUWeight(out_features, in_features, dtype, gated)
