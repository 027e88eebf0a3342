"""Llama (https://arxiv.org/abs/2302.13971), and the families that differ from it only in their configuration."""

from torch import nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.blocks import PreNormBlock
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.self_attention import SelfAttention
from vllm_engine.models.rotary_causal_lm import RotaryCausalLM


class LlamaForCausalLM(RotaryCausalLM):
    """Pre-norm blocks of grouped-query attention and a gated MLP."""

    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        attention = SelfAttention(config, layer_index, rotary)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation, bias=config.mlp_bias)
        return PreNormBlock(config, attention, mlp)
