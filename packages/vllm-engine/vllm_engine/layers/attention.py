"""Causal self-attention over the paged KV cache."""

from dataclasses import dataclass

from torch import Tensor

from vllm_engine.layers.module import TensorModule
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import KVCache, write_kv


@dataclass(slots=True)
class AttentionContext:
    """What the attention layers of one step need beside their inputs, made by the model runner and passed down.

    Lists of one entry per KV cache group: ``metadata``, and ``slot_mappings`` (int64 ``[T]``, where each token's key
    and value go; -1 is nowhere). Lists of one entry per layer: ``group_of_layer`` and ``kv_caches``.
    """

    metadata: list[AttentionMetadata]
    slot_mappings: list[Tensor]
    group_of_layer: list[int]
    kv_caches: list[KVCache]


class Attention(TensorModule):
    """Writes the step's keys and values to the cache of layer ``layer_index``, then attends to all of each sequence.

    ``sliding_window``: tokens that a query sees, itself included; None is all. ``soft_cap`` squeezes scores into
    ``(-soft_cap, soft_cap)`` with tanh before softmax.
    """

    def __init__(
        self,
        layer_index: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        sliding_window: int | None = None,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = scale
        self.sliding_window = sliding_window
        self.soft_cap = soft_cap

    def forward(self, query: Tensor, key: Tensor, value: Tensor, ctx: AttentionContext) -> Tensor:
        """query ``[T, Hq, D]``, key and value ``[T, Hkv, D]`` -> ``[T, Hq * D]``."""
        group = ctx.group_of_layer[self.layer_index]
        cache = ctx.kv_caches[self.layer_index]
        write_kv(key, value, cache, ctx.slot_mappings[group])
        output = paged_attention(
            query,
            cache,
            ctx.metadata[group],
            scale=self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
        )
        return output.flatten(1)
