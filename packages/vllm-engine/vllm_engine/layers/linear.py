"""Linear layers, on their own or several of the checkpoint as one, so that one GEMM serves them all."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm_engine.layers.norm import RMSNorm
from vllm_engine.layers.weights import RowsSlot, Slot, TensorSlot, WeightedModule, WeightFormat
from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.ops.linear import gated_linear, linear


class Projection(WeightedModule):
    """A weight ``[out_features, in_features]`` with or without bias, and their places in a checkpoint.

    Args:
        in_features, out_features: columns and rows of the weight.
        bias: whether there is one.
        parts: output sizes of the layers that this one holds side by side, by their names in the checkpoint, which are
            next to its own in the module tree; None if the checkpoint has it as it is.
        transposed: the checkpoint keeps the weight as ``[in_features, out_features]`` (GPT-2's Conv1D).
    """

    gated = False
    weight: LinearWeight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        parts: dict[str, int] | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.parts = parts
        self.transposed = transposed
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def allocate(self, weight_format: WeightFormat) -> None:
        self.weight = weight_format.projection(self.out_features, self.in_features, gated=self.gated)

    def slots(self, name: str) -> Iterator[tuple[str, Slot]]:
        parent, _, own = name.rpartition(".")
        start = 0
        for part, size in (self.parts or {own: self.out_features}).items():
            full_name = f"{parent}.{part}" if parent else part
            yield f"{full_name}.weight", RowsSlot(self.weight, start, size, self.transposed)
            if self.bias is not None:
                yield f"{full_name}.bias", TensorSlot(self.bias[start : start + size])
            start += size


class Linear(Projection):
    """``y = x W^T + b``."""

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: RMSNorm | None = None) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``; ``residual``, of that shape, is added.

        With ``norm``, of ``norm(x)``.
        """
        before = None if norm is None else norm.before_projection()
        return linear(x, self.weight, self.bias, residual=residual, norm=before)


class QKVLinear(Linear):
    """Query, key and value projections: ``[T, hidden_size]`` -> ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``.

    ``fused_in_checkpoint``: the checkpoint has them as one matrix already, under this layer's own name; otherwise as
    ``q_proj``, ``k_proj`` and ``v_proj`` beside it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        *,
        fused_in_checkpoint: bool = False,
        transposed: bool = False,
    ) -> None:
        sizes = {"q_proj": num_heads * head_dim, "k_proj": num_kv_heads * head_dim, "v_proj": num_kv_heads * head_dim}
        parts = None if fused_in_checkpoint else sizes
        super().__init__(hidden_size, sum(sizes.values()), bias, parts=parts, transposed=transposed)


class GatedLinear(Projection):
    """``activation(gate(x)) * up(x)`` (https://arxiv.org/abs/2002.05202): two projections of the same size.

    ``fused_in_checkpoint``: the checkpoint has them as one matrix already, gate above up, under this layer's own name;
    otherwise as ``gate_proj`` and ``up_proj`` beside it.
    """

    gated = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Activation,
        bias: bool = False,
        *,
        fused_in_checkpoint: bool = False,
    ) -> None:
        parts = None if fused_in_checkpoint else {"gate_proj": out_features, "up_proj": out_features}
        super().__init__(in_features, 2 * out_features, bias, parts=parts)
        self.activation: Activation = activation

    def forward(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``; with ``norm``, of ``norm(x)``."""
        before = None if norm is None else norm.before_projection()
        return gated_linear(x, self.weight, self.activation, self.bias, norm=before)
