import torch
from torch.nn import functional

from vllm_kernels.eager import activation as activations
from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.reference.linear import PlainWeight

_GATES = {
    "silu": activations.silu_and_mul,
    "gelu": activations.gelu_and_mul,
    "gelu_tanh": activations.gelu_tanh_and_mul,
    "swigluoai": activations.swigluoai_and_mul,
}


class EagerWeight(PlainWeight):
    """Multiplied by torch's own ``linear``; the sum of bias and residual is rounded in between."""

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = self._product(x, bias)
        if residual is not None:
            result = result + residual
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return _GATES[activation](self._product(x, bias))

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.dtype == torch.float32 or x.dtype == torch.float64:
            return functional.linear(x, self.tensor, bias)
        # oneDNN compiles and keeps a kernel of up to a megabyte for every number of rows that it meets in 16 bits.
        # Steps have all sizes, so without rounding a server grows by hundreds of megabytes.
        count = x.shape[0]
        padded_count = padded_rows(count)
        if padded_count == count:
            return functional.linear(x, self.tensor, bias)
        padded = x.new_zeros(padded_count, x.shape[1])
        padded[:count] = x
        return functional.linear(padded, self.tensor, bias)[:count]


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return EagerWeight(out_features, in_features, dtype, gated)


def padded_rows(count: int) -> int:
    """``count`` rounded up to one of a few dozen sizes: four in each octave, so by less than a quarter."""
    if count <= 8:
        return count
    step = max(8, 1 << ((count - 1).bit_length() - 3))
    return -(-count // step) * step
