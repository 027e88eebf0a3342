"""Gemma 2 (https://arxiv.org/abs/2408.00118)."""

from typing import ClassVar

from torch import nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.blocks import SandwichNormBlock
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.self_attention import SelfAttention
from vllm_engine.models.rotary_causal_lm import RotaryCausalLM


class Gemma2ForCausalLM(RotaryCausalLM):
    """Norms on both sides of each layer, soft-capped scores and logits, every other layer with a sliding window."""

    unit_offset_norm: ClassVar[bool] = True

    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        attention = SelfAttention(config, layer_index, rotary)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        return SandwichNormBlock(config, attention, mlp)
