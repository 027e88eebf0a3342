"""Products of few rows are ours, norm, bias, residual and gate included; of many rows cuBLAS's, through torch."""

import torch
from torch.nn import functional

from vllm_kernels.linear_weight import Activation, LinearWeight, RowNorm
from vllm_kernels.reference.linear import PlainWeight
from vllm_kernels.triton import activation as activations
from vllm_kernels.triton import few_rows, one_row
from vllm_kernels.triton.few_rows_weight import FewRowsWeight
from vllm_kernels.triton.kernel import FLOATS

GATES = {
    "silu": activations.silu_and_mul,
    "gelu": activations.gelu_and_mul,
    "gelu_tanh": activations.gelu_tanh_and_mul,
    "swigluoai": activations.swigluoai_and_mul,
}


class GPUWeight(FewRowsWeight, PlainWeight):
    """Multiplied by torch's own ``linear`` where there are more than a few rows: rounded before what is added to it."""

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        if _are_few(x):
            return self.multiply_few(x, bias, residual, out_dtype)
        result = functional.linear(x, self.tensor, bias)
        if residual is not None:
            result = result + residual
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        if _are_few(x):
            return self.multiply_few(x, bias, None, x.dtype, activation)
        return GATES[activation](functional.linear(x, self.tensor, bias))

    def takes_norm(self, x: torch.Tensor) -> bool:
        return _are_few(x) and (len(x) == 1 or x.dtype != torch.float16)

    def multiply_few_into(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation | None,
        norm: RowNorm | None,
    ) -> None:
        kernel = one_row if len(x) == 1 else few_rows
        kernel.multiply(x, self.tensor, bias, residual, out, activation=activation, norm=norm)


def _are_few(x: torch.Tensor) -> bool:
    return len(x) <= few_rows.MOST_ROWS and x.dtype in FLOATS


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return GPUWeight(out_features, in_features, dtype, gated)
