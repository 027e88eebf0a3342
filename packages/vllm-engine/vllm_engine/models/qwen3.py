"""Qwen 3 (https://arxiv.org/abs/2505.09388)."""

from torch import nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.blocks import PreNormBlock
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.self_attention import QKNormSelfAttention
from vllm_engine.models.rotary_causal_lm import RotaryCausalLM


class Qwen3ForCausalLM(RotaryCausalLM):
    """Llama's blocks with a norm on queries and keys."""

    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        attention = QKNormSelfAttention(config, layer_index, rotary)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        return PreNormBlock(config, attention, mlp)
