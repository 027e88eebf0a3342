"""Linear layers. A merged layer holds several matrices of the checkpoint as one, so that one GEMM serves them all.

``checkpoint_tensors`` says under which names a layer's weights stand in a checkpoint and where each goes: the loader
needs nothing else to fill a merged, split or transposed layer.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vllm_engine.layers.module import TensorModule
from vllm_kernels.ops.linear import linear


class Linear(TensorModule):
    """``y = x W^T + b`` with weight ``[out_features, in_features]``.

    ``transposed``: the checkpoint keeps the weight as ``[in_features, out_features]`` (GPT-2's Conv1D).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return linear(x, self.weight, self.bias)

    def checkpoint_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Checkpoint names of this layer called ``name``, each with the part of the parameters that it fills."""
        yield f"{name}.weight", self.weight.t() if self.transposed else self.weight
        if self.bias is not None:
            yield f"{name}.bias", self.bias


class MergedLinear(Linear):
    """Several linear layers with the same input, their outputs side by side.

    ``parts`` are their names in the checkpoint, next to each other in the module tree, with their output sizes.
    """

    def __init__(self, in_features: int, parts: dict[str, int], bias: bool = False) -> None:
        super().__init__(in_features, sum(parts.values()), bias)
        self.parts = parts

    def checkpoint_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        parent = name.rpartition(".")[0]
        start = 0
        for part, size in self.parts.items():
            yield f"{parent}.{part}.weight", self.weight[start : start + size]
            if self.bias is not None:
                yield f"{parent}.{part}.bias", self.bias[start : start + size]
            start += size


class QKVLinear(nn.Module):
    """Query, key and value projections in one GEMM, split into heads.

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
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        sizes = {"q_proj": num_heads * head_dim, "k_proj": num_kv_heads * head_dim, "v_proj": num_kv_heads * head_dim}
        self.sizes = list(sizes.values())
        self.merged: Linear
        if fused_in_checkpoint:
            self.merged = Linear(hidden_size, sum(self.sizes), bias, transposed=transposed)
        else:
            self.merged = MergedLinear(hidden_size, sizes, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[T, hidden_size]`` -> query ``[T, Hq, D]``, key and value ``[T, Hkv, D]``: views of one tensor."""
        q, k, v = self.merged(x).split_with_sizes(self.sizes, dim=-1)
        heads = (-1, self.num_heads, self.head_dim)
        kv_heads = (-1, self.num_kv_heads, self.head_dim)
        return q.view(heads), k.view(kv_heads), v.view(kv_heads)

    def checkpoint_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """As of ``Linear``: the merged layer under this layer's name."""
        yield from self.merged.checkpoint_tensors(name)
