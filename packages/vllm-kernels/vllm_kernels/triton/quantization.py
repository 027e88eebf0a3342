import torch
from torch.nn import functional

from vllm_kernels.eager.quantization import CompactWeight
from vllm_kernels.linear_weight import Activation
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight
from vllm_kernels.rounded_activations import Rounded as RoundedActivations
from vllm_kernels.triton.activation import gated_by
from vllm_kernels.triton.kernel import FLOATS
from vllm_kernels.triton.quantized_product import Shape, multiply, multiply_rounded
from vllm_kernels.triton.quantized_rounding import Rounded, round_activations
from vllm_kernels.triton.quantized_sums import bytes_of_row
from vllm_kernels.triton.words import are_words
from vllm_kernels.triton.words_weight import WordsWeight


class TritonWeight(CompactWeight):
    """Entries as ``CompactWeight`` keeps them, made to numbers in registers, tile by tile: of 8 bits, or such of 4 that
    meet activations of 8.

    Byte ``j`` of a row of 4 bits holds column ``2 j`` below and ``2 j + 1`` above; rows are whole words.
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated)
        self.packed = torch.empty(out_features, bytes_of_row(in_features, scheme.bits), dtype=torch.uint8)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        x = self.in_order(x).contiguous()
        bias, residual = (None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        out = x.new_empty(len(x), self.out_features, dtype=out_dtype)
        shape = Shape.choose(len(x), self.out_features, self.in_features, self.scheme, x.dtype, x.device)
        if self.scheme.activation_bits:
            rounded = round_activations(x, self.scheme)
            multiply_rounded(rounded, self.packed, self.scales, self.zeros, bias, residual, out, shape)
        else:
            multiply(x, self.packed, self.scales, self.zeros, bias, residual, out, shape)
        return out

    def multiply_rounded(
        self,
        x: RoundedActivations,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        q = self.in_order(x.values).contiguous()
        bias, residual = (None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        out = q.new_empty(len(q), self.out_features, dtype=out_dtype)
        shape = Shape.choose(len(q), self.out_features, self.in_features, self.scheme, self.dtype, q.device)
        group = self.scheme.activation_group
        groups = -(-self.in_features // group)
        whole = functional.pad(q, (0, groups * group - self.in_features)).unflatten(1, (groups, group))
        # One scale for all groups of a row.
        scales = x.scales.unsqueeze(1).expand(-1, groups).contiguous()
        rounded = Rounded(q, scales, whole.sum(dim=2, dtype=torch.int32), group)
        multiply_rounded(rounded, self.packed, self.scales, self.zeros, bias, residual, out, shape)
        return out

    def multiply_gated_rounded(
        self, x: RoundedActivations, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        return gated_by(self.multiply_rounded(x, bias, None, self.dtype), activation)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return gated_by(self.multiply(x, bias, None, x.dtype), activation)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
) -> QuantizedWeight:
    if dtype not in FLOATS:
        return CompactWeight(out_features, in_features, dtype, scheme, gated)
    if are_words(scheme):
        return WordsWeight(out_features, in_features, dtype, scheme, gated)
    return TritonWeight(out_features, in_features, dtype, scheme, gated)
