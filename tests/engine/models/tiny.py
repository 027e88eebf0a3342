"""Tiny random models and a tiny tokenizer, made on the spot for the tests that compare with transformers.

``make_tiny_model("qwen3", folder)`` writes a model folder and returns the transformers model that it came from
(float32, eager attention, evaluation mode). Weights are large for their size, so that greedy text does not fall into
one repeated token, and so that the two best logits are almost always far apart.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 293  # odd on purpose
MAX_POSITIONS = 512
BOS_TOKEN_ID = 1
EOS_TOKEN_ID = 2
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
"""By id, from 0."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["the quick brown fox jumps over the lazy dog", "a tiny model reads the text and writes the next token"]

_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 0,
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
# 16 channels of a head, of which 12 rotate: 6 pairs.
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.6],
    "long_factor": [1.0, 1.3, 1.9, 2.7, 4.0, 6.0],
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
    "rope_theta": 10000.0,
}
_GEMMA: dict[str, Any] = {
    **_DECODER,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 19,
    "tie_word_embeddings": True,
}

_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _DECODER | {"num_key_value_heads": 3}),
    "mistral": ("mistral", _DECODER | {"sliding_window": 21, "head_dim": 16}),
    "qwen2": ("qwen2", _DECODER | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _DECODER | {"head_dim": 16}),
    "phi3": ("phi3", _DECODER | {"num_attention_heads": 4, "original_max_position_embeddings": MAX_POSITIONS}),
    "gemma2": ("gemma2", _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}),
    "gemma3": ("gemma3_text", _GEMMA | {"sliding_window_pattern": 3}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": MAX_POSITIONS,
            "initializer_range": 0.3,
            "bos_token_id": BOS_TOKEN_ID,
            "eos_token_id": EOS_TOKEN_ID,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 48,
            "ffn_dim": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_POSITIONS,
            "init_std": 0.3,
            "bos_token_id": BOS_TOKEN_ID,
            "eos_token_id": EOS_TOKEN_ID,
            "pad_token_id": 0,
        },
    ),
}
FAMILIES = list(_RECIPES)
"""One model of each family."""

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama-dynamic": ("llama", {"rope_parameters": _DYNAMIC}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama-llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": _YARN}),
    "phi3-longrope": (
        "phi3",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 64,
        },
    ),
    "phi3-sliding": ("phi3", {"sliding_window": 18}),
    "gpt2-scaled-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 72}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "opt-galactica": (
        "opt",
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
}
VARIANTS = list(_VARIANTS)
"""Models of the same families with other rotary embeddings, windows, biases, norms."""


def make_tiny_model(family: str, path: Path, **config_overrides: Any) -> PreTrainedModel:
    """Write a random model of a family (a name of ``FAMILIES`` or ``VARIANTS``) to ``path`` and return it.

    The weights are the same every time. ``config_overrides`` are keys of the family's transformers configuration.
    """
    variant: dict[str, Any] = {}
    recipe = family
    if family in _VARIANTS:
        recipe, variant = _VARIANTS[family]
    model_type, values = _RECIPES[recipe]
    config = AutoConfig.for_model(model_type, **{**values, **variant, **config_overrides})
    state = torch.get_rng_state()
    torch.manual_seed(20)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    _stir(model)
    torch.set_rng_state(state)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(path)
    return model


@torch.no_grad()
def _stir(model: PreTrainedModel) -> None:
    """Biases and norms start as zeros and ones, which would hide that one is not applied."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * (0.1 if name.endswith("weight") else 0.3))
    if model.config.model_type.startswith("gemma"):
        # The scaled embedding would drown the layers, and the tied head would then repeat the last token for ever.
        model.get_input_embeddings().weight.mul_(0.1)
        model.model.norm.weight.add_(9.0)


def make_tiny_tokenizer(path: Path) -> Tokenizer:
    """Write a byte-level BPE tokenizer with a chat template to ``path`` and return it.

    It has exactly ``VOCAB_SIZE`` tokens, so it fits the tiny models: ``SPECIAL_TOKENS``, the 256 bytes, 32 merges.
    It can encode any text and adds no special tokens by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "chat_template": _CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return tokenizer
