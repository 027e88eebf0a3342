"""Causal self-attention over the paged KV cache."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm
from vllm_engine.layers.rotary import Rotary
from vllm_kernels.graphs import Pieces
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.ops.rotary import rope_and_cache


@dataclass(slots=True)
class AttentionContext:
    """What the attention layers of one step need beside their inputs, made by the model runner and passed down.

    Lists of one entry per KV cache group: ``metadata``, and ``slot_mappings`` (int64 ``[T]``, where each token's key
    and value go; -1 is nowhere). Lists of one entry per layer: ``group_of_layer`` and ``kv_caches``. ``wanted``: the
    tokens whose hidden states are asked for, int64 ``[R]``; None is all.

    For steps that are captured in pieces and padded: ``pieces``, where attention is called between two of them, with
    the ``metadata`` and for the first ``num_tokens`` that are there when it is called.
    """

    metadata: list[AttentionMetadata]
    slot_mappings: list[Tensor]
    group_of_layer: list[int]
    kv_caches: list[KVCache]
    wanted: Tensor | None = None
    pieces: Pieces | None = None
    num_tokens: int = 0


class Attention(TensorModule):
    """Puts the step's keys and values into the cache of layer ``layer_index``, then attends to all of each sequence.

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

    def forward(
        self,
        qkv: Tensor,
        ctx: AttentionContext,
        positions: Tensor | None = None,
        rotary: Rotary | None = None,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> Tensor:
        """Queries, keys and values side by side, ``[T, (Hq + 2 Hkv) * D]``, which is overwritten -> ``[T, Hq * D]``.

        Heads of queries and keys are first normalised, if they have norms, which are alike but for their weights; then
        rotated by the ``positions`` (int64 ``[T]``), if there is a ``rotary``.
        """
        group = ctx.group_of_layer[self.layer_index]
        cache = ctx.kv_caches[self.layer_index]
        norm = q_norm or k_norm
        query = rope_and_cache(
            qkv,
            self.num_heads,
            positions,
            None if rotary is None else rotary.cos_sin,
            cache,
            ctx.slot_mappings[group],
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            norm_eps=0.0 if norm is None else norm.eps,
            unit_offset=norm is not None and norm.unit_offset,
        )
        if ctx.pieces is None:
            return self._attend(query, ctx).flatten(1)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        ctx.pieces.between(partial(self._attend_anew, ctx), query, output)
        return output.flatten(1)

    def _attend(self, query: Tensor, ctx: AttentionContext, out: Tensor | None = None) -> Tensor:
        return paged_attention(
            query,
            ctx.kv_caches[self.layer_index],
            ctx.metadata[ctx.group_of_layer[self.layer_index]],
            scale=self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
            out=out,
        )

    def _attend_anew(self, ctx: AttentionContext, query: Tensor, output: Tensor) -> None:
        """The step's own tokens; what there is beyond them is padding, and its output may be anything."""
        self._attend(query[: ctx.num_tokens], ctx, output[: ctx.num_tokens])
