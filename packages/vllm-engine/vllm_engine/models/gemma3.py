"""Gemma 3 (https://arxiv.org/abs/2503.19786), text only."""

from typing import ClassVar

from torch import nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.layers.blocks import SandwichNormBlock
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.self_attention import QKNormSelfAttention
from vllm_engine.models.rotary_causal_lm import RotaryCausalLM


class Gemma3ForCausalLM(RotaryCausalLM):
    """Gemma 2's blocks with a norm on queries and keys; sliding layers have a rotary base of their own."""

    unit_offset_norm: ClassVar[bool] = True

    def block(self, config: DecoderConfig, layer_index: int, rotary: Rotary) -> nn.Module:
        attention = QKNormSelfAttention(config, layer_index, rotary, unit_offset=True)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        return SandwichNormBlock(config, attention, mlp)


class Gemma3ForConditionalGeneration(Gemma3ForCausalLM):
    """The language model of a multimodal checkpoint; what sees images stays on disk."""

    renamed_prefixes: ClassVar[dict[str, str]] = {
        "language_model.": "",
        "model.language_model.": "model.",
    }
    ignored_weights: ClassVar[tuple[str, ...]] = (
        *Gemma3ForCausalLM.ignored_weights,
        r"^(model\.)?(vision_tower|multi_modal_projector)\.",
    )
