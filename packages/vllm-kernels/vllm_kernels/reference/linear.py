import torch

from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.reference import activation as activations

GATES = {
    "silu": activations.silu_and_mul,
    "gelu": activations.gelu_and_mul,
    "gelu_tanh": activations.gelu_tanh_and_mul,
    "swigluoai": activations.swigluoai_and_mul,
}


class PlainWeight(LinearWeight):
    """Rows as the checkpoint has them."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.tensor = torch.empty(out_features, in_features, dtype=dtype)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.tensor[start : start + len(rows)] = rows

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tensor[ids]

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
        wide = torch.promote_types(x.dtype, torch.float32)
        result = x.to(wide) @ self.tensor.to(wide).T
        return result if bias is None else result + bias.to(wide)


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return PlainWeight(out_features, in_features, dtype, gated)
