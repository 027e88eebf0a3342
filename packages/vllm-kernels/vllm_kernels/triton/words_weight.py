"""Weights of 4 bits whose activations stay as they are."""

import torch

from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight
from vllm_kernels.reference.quantization import kept_scales, quantize
from vllm_kernels.triton import quantized_few_rows, quantized_product
from vllm_kernels.triton.activation import gated_by
from vllm_kernels.triton.few_rows_weight import FewRowsWeight
from vllm_kernels.triton.words import apart, from_words, to_words, with_zeros, words_of_row


class WordsWeight(FewRowsWeight, QuantizedWeight):
    """Entries as ``words``, and their zeros in the scales, made to numbers in registers, tile by tile."""

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated=gated)
        self.group = scheme.group_size or in_features
        self.words = torch.empty(out_features, 4 * words_of_row(in_features), dtype=torch.uint8)
        self.scales = torch.empty(out_features, self.groups, dtype=torch.int32)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_quantized(*quantize(rows, self.scheme), start)

    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        end = start + len(q)
        self.words[start:end] = to_words(q)
        self.scales[start:end] = with_zeros(kept_scales(scales), zeros)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        q = from_words(self.words[ids], self.in_features)
        scales, zeros = (
            table.repeat_interleave(self.group, dim=1)[:, : self.in_features] for table in apart(self.scales[ids])
        )
        return self.out_of_order(((q.float() - zeros) * scales).to(self.dtype))

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        x = self.in_order(x)
        if quantized_few_rows.serves(len(x)):
            return self.multiply_few(x, bias, residual, out_dtype)
        out = x.new_empty(len(x), self.out_features, dtype=out_dtype)
        shape = quantized_product.Shape.choose(
            len(x), self.out_features, self.in_features, self.scheme, x.dtype, x.device
        )
        bias, residual = (None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        quantized_product.multiply(x.contiguous(), self.words, self.scales, None, bias, residual, out, shape)
        return out

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        if quantized_few_rows.serves(len(x)):
            return self.multiply_few(self.in_order(x), bias, None, x.dtype, activation)
        return gated_by(self.multiply(x, bias, None, x.dtype), activation)

    def takes_norm(self, x: torch.Tensor) -> bool:
        # Its weights would have to be in the order of the columns, too; and in half precision products may overflow.
        return quantized_few_rows.serves(len(x)) and self.order is None and x.dtype != torch.float16

    def multiply_few_into(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation | None,
        norm: RowNorm | None,
    ) -> None:
        quantized_few_rows.multiply(
            x, self.words, self.scales, self.group, bias, residual, out, activation=activation, norm=norm
        )
