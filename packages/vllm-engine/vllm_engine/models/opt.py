"""OPT (https://arxiv.org/abs/2205.01068), and Galactica, which is built the same."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.attention import Attention, AttentionContext
from vllm_engine.layers.embedding import Embedding, LearnedPositions, LMHead
from vllm_engine.layers.linear import Linear, QKVLinear
from vllm_engine.layers.mlp import plain_activation
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import LayerNorm
from vllm_engine.models.causal_lm import CausalLM

_POSITION_OFFSET = 2
"""The first two rows of the position table belong to padding."""


class OPTAttention(TensorModule):
    """Attention without rotary positions."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.qkv_proj = QKVLinear(config.hidden_size, *heads, bias=config.attention_bias)
        self.attention = Attention(layer_index, *heads, scale=config.attention_scale)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=config.attention_output_bias)

    def forward(self, x: Tensor, ctx: AttentionContext, residual: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, H]``, added to the residual stream ``[T, H]``."""
        return self.out_proj(self.attention(self.qkv_proj(x), ctx), residual)


class OPTDecoderLayer(TensorModule):
    """One block. The 350M model normalises after adding to the stream, all others before each layer."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.norm_before = config.do_layer_norm_before
        self.self_attn = OPTAttention(config, layer_index)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, config.norm_eps, affine=config.layer_norm_affine)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.activation = plain_activation(config.activation)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.norm_eps, affine=config.layer_norm_affine)

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        if self.norm_before:
            x = self.self_attn(self.self_attn_layer_norm(x), ctx, residual=x)
            return self._feed_forward(self.final_layer_norm(x), residual=x)
        x = self.self_attn_layer_norm(self.self_attn(x, ctx, residual=x))
        return self.final_layer_norm(self._feed_forward(x, residual=x))

    def _feed_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)), residual)


class OPTDecoder(TensorModule):
    """Token table (with projections when it is narrower than the model), position table, blocks, last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        embed_dim = config.word_embed_proj_dim or hidden_size
        self.embed_tokens = Embedding(config.vocab_size, embed_dim, tied=config.tie_word_embeddings)
        self.embed_positions = LearnedPositions(config.max_position_embeddings, hidden_size, offset=_POSITION_OFFSET)
        self.project_in = None if embed_dim == hidden_size else Linear(embed_dim, hidden_size)
        self.project_out = None if embed_dim == hidden_size else Linear(hidden_size, embed_dim)
        self.layers = nn.ModuleList(OPTDecoderLayer(config, index) for index in range(config.num_layers))
        self.final_layer_norm = None
        if config.final_layer_norm:
            self.final_layer_norm = LayerNorm(hidden_size, config.norm_eps, affine=config.layer_norm_affine)

    def forward(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        """Embeddings ``[T, word_embed_proj_dim]``, positions int64 ``[T]`` -> ``[T, word_embed_proj_dim]``."""
        if self.project_in is not None:
            x = self.project_in(x)
        x = self.embed_positions(x, positions)  # [T, H]
        for layer in self.layers:
            x = layer(x, ctx)
        if self.final_layer_norm is not None:
            x = self.final_layer_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return x


class OPTForCausalLM(CausalLM):
    """The decoder and its head. Positions are learned: there are none beyond the table."""

    renamed_prefixes: ClassVar[dict[str, str]] = {"model.decoder.": "decoder."}

    def __init__(self, config: DecoderConfig, max_len: int, device: torch.device) -> None:
        super().__init__(config)
        self.decoder = OPTDecoder(config)
        self.lm_head = LMHead(self.decoder.embed_tokens)

    @property
    def embedding(self) -> Embedding:
        return self.decoder.embed_tokens

    def decode(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        return self.decoder(x, positions, ctx)
