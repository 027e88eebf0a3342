"""The trunk that decoders with rotary positions share: embedding, blocks, last norm, head."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.config.rope import RopeConfig
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import Embedding, LMHead
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm
from vllm_engine.layers.rotary import Rotary
from vllm_engine.models.causal_lm import CausalLM


class RotaryDecoder(TensorModule):
    """Embedding, blocks along the residual stream (see ``layers.blocks``), and the norm after them."""

    def __init__(self, embed_tokens: Embedding, blocks: list[nn.Module], norm: RMSNorm) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        """Embeddings ``[T, H]``, positions int64 ``[T]`` -> ``[T, H]``, or ``[R, H]`` for the ``wanted`` of ``ctx``.

        Of the others the last block keeps keys and values, which is all that anybody will read of it.
        """
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, positions, ctx)
        x = last(x, positions, ctx, ctx.wanted)
        normed: Tensor = self.norm(x)
        return normed


class RotaryCausalLM(CausalLM):
    """A family says with ``block`` what its layers are made of.

    Args:
        config: shape of the model.
        max_len: positions that are served, at most.
        device: where the rotary tables live (the parameters are allocated later).
    """

    ignored_weights: ClassVar[tuple[str, ...]] = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",)
    unit_offset_norm: ClassVar[bool] = False

    def __init__(self, config: DecoderConfig, max_len: int, device: torch.device) -> None:
        super().__init__(config)
        ropes = [config.layer_rope(index) for index in range(config.num_layers)]
        rotaries: dict[RopeConfig, Rotary] = {rope: Rotary(rope, max_len, device) for rope in dict.fromkeys(ropes)}
        self.model = RotaryDecoder(
            Embedding(
                config.vocab_size,
                config.hidden_size,
                tied=config.tie_word_embeddings,
                scale=config.embedding_scale,
            ),
            [self.block(config, index, rotaries[rope]) for index, rope in enumerate(ropes)],
            RMSNorm(config.hidden_size, config.norm_eps, unit_offset=self.unit_offset_norm),
        )
        self.lm_head = LMHead(self.model.embed_tokens, soft_cap=config.final_soft_cap)

    @abstractmethod
    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        """Layer ``layer_index``: called as ``(x, positions, ctx, rows)``, see ``layers.blocks``."""

    @property
    def embedding(self) -> Embedding:
        return self.model.embed_tokens

    def decode(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        return self.model(x, positions, ctx)
