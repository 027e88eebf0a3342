"""Phi-3 and Phi-4-mini (https://arxiv.org/abs/2404.14219)."""

from torch import nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.blocks import PreNormBlock
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.self_attention import SelfAttention
from vllm_engine.models.rotary_causal_lm import RotaryCausalLM


class Phi3ForCausalLM(RotaryCausalLM):
    """Llama's blocks; the checkpoint has ``qkv_proj`` and ``gate_up_proj`` fused already."""

    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        attention = SelfAttention(config, layer_index, rotary, fused_in_checkpoint=True)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation, fused_in_checkpoint=True)
        return PreNormBlock(config, attention, mlp)
