"""Where a layer keeps its weights, and how the tensors of a checkpoint get there.

Norms, biases and tables of rows are parameters. A matrix that activations are multiplied with is a ``LinearWeight``, in
a layout of its kernel's own, which only ``LinearWeight.fill`` can write: so a checkpoint's tensor goes to a ``Slot``.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vllm_engine.layers.module import TensorModule
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops import fp8, linear, quantization

Quantization = Literal["int8", "int4", "fp8"]

INT4_GROUP_SIZE = 128
"""Columns of a 4-bit weight that share a scale."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What the weights of a model are made of.

    Args:
        dtype: of parameters and activations.
        device: where they live.
        quantization: what projections are rounded to as they are filled, or None. ``int8`` has a scale for each row;
            ``int4`` one for each ``INT4_GROUP_SIZE`` columns, but the vocabulary's is int8; ``fp8`` (e4m3) one for each
            row, and the vocabulary's stays as it is.
        int4_activation_bits: 8 where activations are rounded before they meet 4-bit weights, None where they are not.
            Those that meet weights of 8 bits always are.
    """

    dtype: torch.dtype
    device: torch.device
    quantization: Quantization | None = None
    int4_activation_bits: int | None = 8

    def projection(self, out_features: int, in_features: int, *, gated: bool = False) -> LinearWeight:
        """The weight of a layer, not filled yet."""
        sizes = (out_features, in_features, self.dtype, self.device)
        if self.quantization is None:
            return linear.new_weight(*sizes, gated=gated)
        if self.quantization == "int8":
            return quantization.new_weight(*sizes, bits=8, gated=gated)
        if self.quantization == "fp8":
            return fp8.new_weight(*sizes, gated=gated)
        return quantization.new_weight(
            *sizes, bits=4, group_size=INT4_GROUP_SIZE, activation_bits=self.int4_activation_bits, gated=gated
        )

    def vocabulary(self, num_tokens: int, in_features: int) -> LinearWeight:
        """The weight of the head, or of token embedding and head in one, not filled yet."""
        sizes = (num_tokens, in_features, self.dtype, self.device)
        if self.quantization in (None, "fp8"):
            return linear.new_weight(*sizes)
        return quantization.new_weight(*sizes, bits=8)


class Slot(Protocol):
    """The place of one tensor of a checkpoint."""

    @property
    def shape(self) -> torch.Size:
        """The only shape that fits."""

    @property
    def divisible(self) -> bool:
        """Whether the tensor may come in several pieces."""

    def fill(self, rows: Tensor, start: int = 0) -> None:
        """Store rows ``[start, start + len(rows))`` of the tensor, of any floating type; they are not kept."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """A parameter, or a part of one."""

    target: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.target.shape

    @property
    def divisible(self) -> bool:
        return True

    def fill(self, rows: Tensor, start: int = 0) -> None:
        self.target[start : start + len(rows)] = rows


@dataclass(frozen=True, slots=True)
class RowsSlot:
    """Rows ``[start, start + count)`` of a weight; ``transposed``: the checkpoint has them as columns."""

    weight: LinearWeight
    start: int
    count: int
    transposed: bool = False

    @property
    def shape(self) -> torch.Size:
        shape = (self.count, self.weight.in_features)
        return torch.Size(shape[::-1] if self.transposed else shape)

    @property
    def divisible(self) -> bool:
        return not self.transposed

    def fill(self, rows: Tensor, start: int = 0) -> None:
        linear.fill(self.weight, rows.t() if self.transposed else rows, self.start + start)


class WeightedModule(TensorModule):
    """A layer with a ``LinearWeight``; its other parameters are made by ``CausalLM.allocate``, as everyone's."""

    weight: LinearWeight | nn.Parameter | None

    @abstractmethod
    def allocate(self, weight_format: WeightFormat) -> None:
        """Make the weight, unless it is a parameter or another layer's."""

    @abstractmethod
    def slots(self, name: str) -> Iterator[tuple[str, Slot]]:
        """Checkpoint names of this layer called ``name``, each with the place of its tensor."""
