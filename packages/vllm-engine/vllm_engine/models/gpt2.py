"""GPT-2 (Radford et al., 2019)."""

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


class GPT2Attention(TensorModule):
    """Attention with fused projections; the checkpoint keeps matrices as ``[in, out]``."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.c_attn = QKVLinear(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            bias=True,
            fused_in_checkpoint=True,
            transposed=True,
        )
        divisor = layer_index + 1 if config.scale_attention_by_layer else 1
        scale = config.attention_scale / divisor
        self.attention = Attention(layer_index, config.num_heads, config.num_kv_heads, config.head_dim, scale)
        self.c_proj = Linear(config.hidden_size, config.hidden_size, bias=True, transposed=True)

    def forward(self, x: Tensor, ctx: AttentionContext, residual: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, H]``, added to the residual stream ``[T, H]``."""
        return self.c_proj(self.attention(self.c_attn(x), ctx), residual)


class GPT2MLP(TensorModule):
    """Two projections with an activation between."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.hidden_size, config.intermediate_size, bias=True, transposed=True)
        self.c_proj = Linear(config.intermediate_size, config.hidden_size, bias=True, transposed=True)
        self.activation = plain_activation(config.activation)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, H]``, added to the residual stream ``[T, H]``."""
        return self.c_proj(self.activation(self.c_fc(x)), residual)


class GPT2Block(TensorModule):
    """Pre-norm block with layer norms."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = GPT2Attention(config, layer_index)
        self.ln_2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, ctx: AttentionContext) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        x = self.attn(self.ln_1(x), ctx, residual=x)
        return self.mlp(self.ln_2(x), residual=x)


class GPT2Transformer(TensorModule):
    """Token and position tables, blocks, last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.hidden_size, tied=config.tie_word_embeddings)
        self.wpe = LearnedPositions(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(GPT2Block(config, index) for index in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        """Embeddings ``[T, H]``, positions int64 ``[T]`` -> ``[T, H]``."""
        x = self.wpe(x, positions)
        for block in self.h:
            x = block(x, ctx)
        return self.ln_f(x)


class GPT2LMHeadModel(CausalLM):
    """The transformer and its head. Positions are learned: there are none beyond the table."""

    renamed_prefixes: ClassVar[dict[str, str]] = {
        # Checkpoints saved from the bare model have no prefix.
        part: f"transformer.{part}"
        for part in ("wte.", "wpe.", "h.", "ln_f.")
    }
    ignored_weights: ClassVar[tuple[str, ...]] = (r"\.attn\.(bias|masked_bias)$",)

    def __init__(self, config: DecoderConfig, max_len: int, device: torch.device) -> None:
        super().__init__(config)
        self.transformer = GPT2Transformer(config)
        self.lm_head = LMHead(self.transformer.wte)

    @property
    def embedding(self) -> Embedding:
        return self.transformer.wte

    def decode(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        return self.transformer(x, positions, ctx)
