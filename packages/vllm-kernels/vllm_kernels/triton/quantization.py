import torch

from vllm_kernels.eager import quantization as eager
from vllm_kernels.linear_weight import Activation
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight
from vllm_kernels.reference.quantization import kept_scales, quantize
from vllm_kernels.triton.activation import gated_by
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import FLOATS
from vllm_kernels.triton.quantized_product import Shape, multiply, multiply_rounded, round_activations


class TritonWeight(QuantizedWeight):
    """Entries of 8 bits, or two of 4 bits a byte, row after row; made to numbers in registers, tile by tile.

    Byte ``j`` of a row of 4 bits holds column ``2 j`` below and ``2 j + 1`` above. Rows end with zeros, to have whole
    bytes.
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated=gated)
        self.packed = torch.empty(out_features, -(-in_features * scheme.bits // 8), dtype=torch.uint8)
        self.scales = torch.empty(out_features, self.groups)
        self.zeros = torch.empty(out_features, self.groups, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.zeros.nbytes

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_quantized(*quantize(rows, self.scheme), start)

    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        if self.scheme.bits == 4:
            if self.in_features % 2:
                q = torch.nn.functional.pad(q, (0, 1))
            q = q[:, 0::2] | q[:, 1::2] << 4
        end = start + len(q)
        self.packed[start:end], self.scales[start:end], self.zeros[start:end] = q, kept_scales(scales), zeros

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        q = self.packed[ids]
        if self.scheme.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=-1).flatten(1)[:, : self.in_features]
        size = self.scheme.group_size or self.in_features
        scales, zeros = (
            table[ids].repeat_interleave(size, dim=1)[:, : self.in_features] for table in (self.scales, self.zeros)
        )
        return self.out_of_order(((q.float() - zeros) * scales).to(self.dtype))

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        x = self.in_order(x).contiguous()
        out = x.new_empty(len(x), self.out_features, dtype=out_dtype)
        shape = Shape.choose(
            len(x), self.out_features, self.in_features, self.scheme, x.dtype, multiprocessors(x.device)
        )
        if self.scheme.activation_bits:
            rounded = round_activations(x, self.scheme)
            multiply_rounded(rounded, self.packed, self.scales, self.zeros, bias, residual, out, shape)
        else:
            multiply(x, self.packed, self.scales, self.zeros, bias, residual, out, shape)
        return out

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return gated_by(self.multiply(x, bias, None, torch.float32), activation, x.dtype)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
) -> QuantizedWeight:
    if dtype not in FLOATS:
        return eager.new_weight(out_features, in_features, dtype, scheme, gated)
    return TritonWeight(out_features, in_features, dtype, scheme, gated)
