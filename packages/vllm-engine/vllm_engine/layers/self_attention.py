"""Self-attention of decoders with rotary positions: projections, rotation, attention, output projection."""

from torch import Tensor

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.attention import Attention, AttentionContext
from vllm_engine.layers.linear import Linear, QKVLinear
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm
from vllm_engine.layers.rotary import Rotary


class SelfAttention(TensorModule):
    """Attention of one layer as the configuration describes it (heads, biases, window, soft cap).

    ``fused_in_checkpoint``: the checkpoint has one ``qkv_proj`` instead of ``q_proj``, ``k_proj`` and ``v_proj``.
    """

    def __init__(
        self, config: DecoderConfig, layer_index: int, rotary: Rotary, *, fused_in_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.qkv_proj = QKVLinear(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            bias=config.attention_bias,
            fused_in_checkpoint=fused_in_checkpoint,
        )
        self.rotary = rotary
        self.attention = Attention(
            layer_index,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.attention_scale,
            sliding_window=config.layer_window(layer_index),
            soft_cap=config.attention_soft_cap,
        )
        self.o_proj = Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        ctx: AttentionContext,
        residual: Tensor | None = None,
        rows: Tensor | None = None,
        norm: RMSNorm | None = None,
    ) -> Tensor:
        """``[T, H]`` -> ``[T, H]``; ``residual``, of that shape, is added. With ``norm``, of ``norm(x)``.

        With ``rows``, int64 ``[R]``, only these come out: ``[R, H]``. The keys and values of all are kept.
        """
        output = self.attention(self.qkv_proj(x, norm=norm), ctx, positions, self.rotary, self.q_norm, self.k_norm)
        if rows is not None:
            output = output[rows]
            residual = None if residual is None else residual[rows]
        return self.o_proj(output, residual)


class QKNormSelfAttention(SelfAttention):
    """With an RMS norm on every query and key head before the rotation (Qwen 3, Gemma 3)."""

    def __init__(self, config: DecoderConfig, layer_index: int, rotary: Rotary, *, unit_offset: bool = False) -> None:
        super().__init__(config, layer_index, rotary)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, unit_offset=unit_offset)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, unit_offset=unit_offset)
