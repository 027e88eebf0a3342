"""The two ways of decoders with RMS norm to string attention and feed-forward along the residual stream.

A block takes what the block before brought and the residual stream without it, so that adding and normalising are one
pass. The first block gets no residual: its input is the stream.
"""

from torch import Tensor, nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm


class PreNormBlock(nn.Module):
    """Norm before attention and before the feed-forward layer (Llama)."""

    def __init__(self, config: DecoderConfig, self_attn: TensorModule, mlp: TensorModule) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = mlp

    def forward(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, ctx: AttentionContext
    ) -> tuple[Tensor, Tensor]:
        """``[T, H]`` twice -> what the feed-forward layer brings, and the stream before it."""
        x, residual = (self.input_layernorm(x), x) if residual is None else self.input_layernorm(x, residual)
        x = self.self_attn(x, positions, ctx)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class SandwichNormBlock(nn.Module):
    """Norm before and after both, with weights that count from 1 (Gemma 2 and 3)."""

    def __init__(self, config: DecoderConfig, self_attn: TensorModule, mlp: TensorModule) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.mlp = mlp
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)

    def forward(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, ctx: AttentionContext
    ) -> tuple[Tensor, Tensor]:
        """As ``PreNormBlock``."""
        x, residual = (self.input_layernorm(x), x) if residual is None else self.input_layernorm(x, residual)
        x = self.post_attention_layernorm(self.self_attn(x, positions, ctx))
        x, residual = self.pre_feedforward_layernorm(x, residual)
        return self.post_feedforward_layernorm(self.mlp(x)), residual
