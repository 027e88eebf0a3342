"""The two ways of decoders with RMS norm to string attention and feed-forward along the residual stream."""

from torch import Tensor

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm
from vllm_kernels.ops.add import add


class PreNormBlock(TensorModule):
    """Norm before attention and before the feed-forward layer (Llama)."""

    def __init__(self, config: DecoderConfig, self_attn: TensorModule, mlp: TensorModule) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor, positions: Tensor, ctx: AttentionContext, rows: Tensor | None = None) -> Tensor:
        """The residual stream ``[T, H]`` before and after the block: after it ``rows``, int64 ``[R]``, or all."""
        x = self.self_attn(x, positions, ctx, residual=x, rows=rows, norm=self.input_layernorm)
        return self.mlp(x, residual=x, norm=self.post_attention_layernorm)


class SandwichNormBlock(TensorModule):
    """Norm before and after both, with weights that count from 1 (Gemma 2 and 3)."""

    def __init__(self, config: DecoderConfig, self_attn: TensorModule, mlp: TensorModule) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)
        self.mlp = mlp
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps, unit_offset=True)

    def forward(self, x: Tensor, positions: Tensor, ctx: AttentionContext, rows: Tensor | None = None) -> Tensor:
        """As of ``PreNormBlock``. What a layer brings is normalised before it is added."""
        brought = self.self_attn(x, positions, ctx, rows=rows, norm=self.input_layernorm)
        x = x if rows is None else x[rows]
        normed, x = self.pre_feedforward_layernorm(self.post_attention_layernorm(brought), x)
        return add(x, self.post_feedforward_layernorm(self.mlp(normed)))
