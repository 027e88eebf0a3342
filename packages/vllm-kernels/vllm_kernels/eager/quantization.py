import torch

from vllm_kernels.eager.linear import EagerWeight
from vllm_kernels.linear_weight import Activation
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight
from vllm_kernels.reference.quantization import kept_scales, quantize, rounded_activations


class CompactWeight(QuantizedWeight):
    """Entries of 8 bits, or two of 4 bits a byte, made to floats whole for every product, which is torch's own."""

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated=gated)
        self.packed = torch.empty(out_features, -(-in_features * scheme.bits // 8), dtype=torch.uint8)
        self.scales = torch.empty(out_features, self.groups)
        self.zeros = torch.empty(out_features, self.groups, dtype=torch.uint8)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_quantized(*quantize(rows, self.scheme), start)

    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        if self.scheme.bits == 4:
            q = torch.nn.functional.pad(q, (0, 2 * self.packed.shape[1] - self.in_features))
            q = q[:, 0::2] | q[:, 1::2] << 4
        end = start + len(q)
        self.packed[start:end], self.scales[start:end], self.zeros[start:end] = q, kept_scales(scales), zeros

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out_of_order(self._entries(ids))

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        return self._plain().multiply(self._rounded(x), bias, residual, out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return self._plain().multiply_gated(self._rounded(x), bias, activation)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        x = self.in_order(x)
        return rounded_activations(x, self.scheme.activation_group).to(x.dtype) if self.scheme.activation_bits else x

    def _plain(self) -> EagerWeight:
        plain = EagerWeight(0, self.in_features, self.dtype, self.gated)
        plain.tensor = self._entries(slice(None))
        return plain

    def _entries(self, ids: torch.Tensor | slice) -> torch.Tensor:
        """Rows in ``dtype``, their columns as they are stored."""
        q = self.packed[ids]
        if self.scheme.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=-1).flatten(1)[:, : self.in_features]
        size = self.scheme.group_size or self.in_features
        scales, zeros = (
            table[ids].repeat_interleave(size, dim=1)[:, : self.in_features] for table in (self.scales, self.zeros)
        )
        return ((q.float() - zeros) * scales).to(self.dtype)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
) -> QuantizedWeight:
    return CompactWeight(out_features, in_features, dtype, scheme, gated)
