"""Weights that have a kernel for few rows, in which all is done that goes with a product."""

from abc import abstractmethod

import torch

from vllm_kernels.linear_weight import Activation, LinearWeight, RowNorm


class FewRowsWeight(LinearWeight):
    """The norm of few rows is part of their product, where that can be."""

    @abstractmethod
    def takes_norm(self, x: torch.Tensor) -> bool:
        """Whether the kernel for few rows serves ``x`` together with a norm."""

    @abstractmethod
    def multiply_few_into(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation | None,
        norm: RowNorm | None,
    ) -> None:
        """As ``few_rows.multiply``; all are contiguous."""

    def multiply_few(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
        activation: Activation | None = None,
        norm: RowNorm | None = None,
    ) -> torch.Tensor:
        """Rows that the kernel serves, of any strides -> ``[n, out_features]``, or half of that with an activation."""
        out = x.new_empty(len(x), self.out_features // (1 if activation is None else 2), dtype=out_dtype)
        self.multiply_few_into(
            out,
            x.contiguous(),
            None if bias is None else bias.contiguous(),
            None if residual is None else residual.contiguous(),
            activation,
            None if norm is None else norm._replace(weight=norm.weight.contiguous()),
        )
        return out

    def multiply_normed(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        if self.takes_norm(x):
            return self.multiply_few(x, bias, residual, out_dtype, norm=norm)
        return super().multiply_normed(x, norm, bias, residual, out_dtype)

    def multiply_gated_normed(
        self, x: torch.Tensor, norm: RowNorm, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        if self.takes_norm(x):
            return self.multiply_few(x, bias, None, x.dtype, activation, norm)
        return super().multiply_gated_normed(x, norm, bias, activation)
