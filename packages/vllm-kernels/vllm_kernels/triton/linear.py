"""Products in 16 and 32 bits are cuBLAS's, through torch; gates are ours."""

import torch
from torch.nn import functional

from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.reference.linear import PlainWeight
from vllm_kernels.triton import activation as activations

GATES = {
    "silu": activations.silu_and_mul,
    "gelu": activations.gelu_and_mul,
    "gelu_tanh": activations.gelu_tanh_and_mul,
    "swigluoai": activations.swigluoai_and_mul,
}


class TorchWeight(PlainWeight):
    """Multiplied by torch's own ``linear``; the sum of bias and residual is rounded in between."""

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = functional.linear(x, self.tensor, bias)
        if residual is not None:
            result = result + residual
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return GATES[activation](functional.linear(x, self.tensor, bias))


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return TorchWeight(out_features, in_features, dtype, gated)
