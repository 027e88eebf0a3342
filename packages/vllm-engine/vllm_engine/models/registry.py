"""Which class serves which architecture, and how a model is built."""

from importlib import import_module

import torch

from vllm_engine.config.decoder import DecoderConfig, default_max_model_len
from vllm_engine.errors import ConfigError
from vllm_engine.layers.weights import WeightFormat
from vllm_engine.models.causal_lm import CausalLM

MODELS: dict[str, tuple[str, str]] = {
    "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
    # Wired like Llama: a window on every layer (Mistral) and biases of q, k and v (Qwen 2) are in the configuration.
    "MistralForCausalLM": ("llama", "LlamaForCausalLM"),
    "Qwen2ForCausalLM": ("llama", "LlamaForCausalLM"),
    "Qwen3ForCausalLM": ("qwen3", "Qwen3ForCausalLM"),
    "Phi3ForCausalLM": ("phi3", "Phi3ForCausalLM"),
    "Gemma2ForCausalLM": ("gemma2", "Gemma2ForCausalLM"),
    "Gemma3ForCausalLM": ("gemma3", "Gemma3ForCausalLM"),
    "Gemma3ForConditionalGeneration": ("gemma3", "Gemma3ForConditionalGeneration"),
    "GPT2LMHeadModel": ("gpt2", "GPT2LMHeadModel"),
    "OPTForCausalLM": ("opt", "OPTForCausalLM"),
}
"""Module in this package and class, by the name in ``architectures``."""


def build_model(config: DecoderConfig, weight_format: WeightFormat, *, max_len: int | None = None) -> CausalLM:
    """A model whose weights are not filled yet: the loader does it.

    Args:
        config: shape of the model.
        weight_format: what the weights are made of, and where they and the rotary tables live.
        max_len: longest sequence to serve; it sizes the rotary tables and chooses among length-dependent rotary
            frequencies. Default: ``default_max_model_len(config)``.

    Raises:
        ConfigError: unknown architecture, more positions than were learned, or parameters that do not fit into memory.
        torch.OutOfMemoryError: they do not fit into that of a GPU.
    """
    if config.architecture not in MODELS:
        raise ConfigError(
            f"architecture {config.architecture} is not supported; supported: {', '.join(sorted(MODELS))}",
            field="architectures",
        )
    module_name, class_name = MODELS[config.architecture]
    model_class = getattr(import_module(f"vllm_engine.models.{module_name}"), class_name)
    max_len = max_len or default_max_model_len(config)
    if config.rope is None and max_len > config.max_position_embeddings:
        raise ConfigError(
            f"max_model_len {max_len} exceeds the {config.max_position_embeddings} positions that "
            f"{config.architecture} has learned",
            field="max_model_len",
        )
    try:
        # Shapes first, on the meta device, where they cost nothing; memory once, in its final type and place.
        with torch.device("meta"):
            model: CausalLM = model_class(config, max_len, weight_format.device)
        model.allocate(weight_format)
    except torch.OutOfMemoryError:
        raise  # of a GPU: who knows what is in its memory says more
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"a {config.architecture} of this shape in {weight_format.dtype}, with positions up to {max_len}, does not "
            f"fit into memory: {error}",
            field="model",
        ) from error
    return model.eval()
