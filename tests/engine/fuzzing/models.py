"""Random small models with a tokenizer, and random settings of an engine for them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tests.engine.frontend import tiny_tokenizers
from tests.engine.models.tiny import make_tiny_model

LEARNED_POSITIONS = ["gpt2", "opt"]
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", *LEARNED_POSITIONS]


@dataclass
class RandomModel:
    """A model of transformers, and what it was made of."""

    model: PreTrainedModel
    family: str
    tokenizer: str
    config: dict[str, Any]

    @property
    def longest(self) -> int:
        """Tokens that it is made for."""
        config = self.config
        longest = config.get("max_position_embeddings", 512)
        rope = config.get("rope_parameters", {})
        rope = rope.get("full_attention", rope)
        if rope.get("rope_type") == "yarn":
            longest = min(longest, int(rope["original_max_position_embeddings"] * rope["factor"]))
        return int(longest)

    @property
    def needs_full_length(self) -> bool:
        """Whether transformers rotates by the length of what it is given."""
        return self.config.get("rope_parameters", {}).get("rope_type") in ("dynamic", "longrope")


def random_model(rng: random.Random, path: Path) -> RandomModel:
    """Write a model of a random family and shape, and a tokenizer, to ``path``."""
    family = rng.choice(FAMILIES)
    tokenizer = rng.choice(["byte_level", "byte_level", "llama", "llama", "metaspace", "word_piece"])
    tiny_tokenizers.write_folder(path, tokenizer)
    library = tiny_tokenizers.KINDS[tokenizer]()
    end = tiny_tokenizers.SPECIAL_TOKENS[tokenizer].get("eos_token")
    config = {
        "vocab_size": library.get_vocab_size() + rng.choice([0, 0, 1, 7, 40, 40, 700, 5000]),
        "eos_token_id": None if end is None else library.token_to_id(end),
        "bos_token_id": 0 if family == "opt" else None,
        "pad_token_id": 0,
        **(_learned(rng, family) if family in LEARNED_POSITIONS else _rotary(rng, family)),
    }
    return RandomModel(make_tiny_model(family, path, **config), family, tokenizer, config)


def _rotary(rng: random.Random, family: str) -> dict[str, Any]:
    layers, kv_heads = rng.randrange(1, 5), rng.choice([1, 1, 2, 3])
    heads, head_dim = kv_heads * rng.choice([1, 1, 2, 3, 4, 5, 7]), 2 * rng.choice([4, 5, 6, 8, 9, 12, 16, 20, 24])
    window = rng.choice([2, 3, 5, 8, 16, 17, 30, 130])
    config: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        # Some configurations of transformers take multiples of the number of heads only.
        "hidden_size": heads * rng.choice([8, 11, 16, 21]),
        "intermediate_size": rng.choice([40, 64, 81, 128]),
        "tie_word_embeddings": rng.random() < 0.4,
        "max_position_embeddings": rng.choice([64, 128, 256, 512, 2048]),
    }
    if family == "phi3":
        return config | _phi3(rng, heads, config["max_position_embeddings"], window)
    kinds = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
    if family in ("mistral", "gemma2", "gemma3"):
        config["sliding_window"] = window
    if family == "mistral" and rng.random() < 0.25:
        config["sliding_window"] = None
    if family in ("qwen2", "qwen3") and rng.random() < 0.5:
        first = rng.randrange(layers + 1)
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first}
    if family in ("gemma2", "gemma3"):
        config |= {"layer_types": kinds, "query_pre_attn_scalar": rng.choice([8, 12, 64])}
    if family == "gemma2":
        config["attn_logit_softcapping"] = rng.choice([None, 2.0, 5.0, 50.0])
        config["final_logit_softcapping"] = rng.choice([None, 4.0, 8.0, 30.0])
    if family in ("llama", "qwen3", "gemma2", "gemma3"):
        config["attention_bias"] = rng.random() < 0.4
    if family == "llama":
        config["mlp_bias"] = rng.random() < 0.4
    rope = _rope(rng, by_layer=family == "gemma3")
    if family == "gemma3":
        local = {"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0])}
        rope = {"full_attention": rope, "sliding_attention": local}
    return config | {"rope_parameters": rope}


def _phi3(rng: random.Random, heads: int, positions: int, window: int) -> dict[str, Any]:
    head_dim = 8 * rng.choice([1, 2, 3, 4])
    config = {
        "head_dim": head_dim,
        "hidden_size": heads * head_dim,
        "sliding_window": rng.choice([None, None, window]),
        "original_max_position_embeddings": positions,
    }
    if rng.random() < 0.7:
        part = rng.choice([1.0, 0.75, 0.5, 0.25])
        pairs = int(head_dim * part) // 2
        config["original_max_position_embeddings"] = original = rng.choice([32, 64, positions])
        config["rope_parameters"] = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": part,
            "original_max_position_embeddings": original,
            "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
            "long_factor": [1.0 + 0.4 * pair for pair in range(pairs)],
        }
    return config


def _rope(rng: random.Random, *, by_layer: bool) -> dict[str, Any]:
    # Of a layer type's own parameters, transformers does not find all: no ``dynamic``, no ``truncate``.
    kind = rng.choice(["default", "linear", "yarn", "llama3", *([] if by_layer else ["default", "dynamic"])])
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": rng.choice([500.0, 10000.0, 1e6])}
    if kind in ("linear", "dynamic"):
        rope["factor"] = rng.choice([1.0, 1.5, 2.0, 4.0])
    if kind == "llama3":
        rope |= {"factor": 8.0, "low_freq_factor": rng.choice([1.0, 0.5]), "high_freq_factor": 4.0}
    if kind == "yarn":
        rope["factor"] = rng.choice([2.0, 4.0, 3.3])
        if rng.random() < 0.3:
            rope |= {"beta_fast": rng.choice([4.0, 16.0]), "beta_slow": rng.choice([0.5, 2.0])}
        rope |= rng.choice([{}, {"attention_factor": 1.2}, {"mscale": 0.7, "mscale_all_dim": 1.1}])
        if not by_layer and rng.random() < 0.3:
            rope["truncate"] = False
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = rng.choice([32, 64, 128])
    return rope


def _learned(rng: random.Random, family: str) -> dict[str, Any]:
    layers, heads = rng.randrange(1, 5), rng.choice([1, 2, 3, 5])
    width = heads * rng.choice([4, 7, 9, 15, 16])
    if family == "gpt2":
        return {
            "n_layer": layers,
            "n_head": heads,
            "n_embd": width,
            "n_inner": rng.choice([None, 50, 72]),
            "scale_attn_by_inverse_layer_idx": rng.random() < 0.3,
            "scale_attn_weights": rng.random() < 0.8,
            "tie_word_embeddings": rng.random() < 0.7,
            "activation_function": rng.choice(["gelu_new", "relu", "gelu"]),
        }
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "ffn_dim": rng.choice([40, 96]),
        "word_embed_proj_dim": rng.choice([width, 24, 10]),
        "do_layer_norm_before": rng.random() < 0.7,
        "enable_bias": rng.random() < 0.7,
        "layer_norm_elementwise_affine": rng.random() < 0.8,
        "activation_function": rng.choice(["relu", "gelu"]),
        "tie_word_embeddings": rng.random() < 0.8,
    }


def random_settings(rng: random.Random, model: RandomModel) -> dict[str, Any]:
    """Settings of an engine, in float32, in which requests are cut, sent back and shared as often as can be."""
    max_model_len = min(rng.choice([24, 40, 64, 100, 160, 160, 400]), model.longest)
    num_tokens = rng.choice([1, 2, 3, 5, 8, 16, 17, 40, 64, 200, 2048])
    num_seqs = min(num_tokens, rng.choice([1, 2, 3, 4, 8, 16]))
    num_partial = rng.choice([1, 1, 2, 3])
    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": max_model_len,
        "block_size": rng.choice([1, 2, 3, 4, 5, 7, 8, 16, 32]),
        "max_num_batched_tokens": num_tokens,
        "max_num_seqs": num_seqs,
        "max_num_partial_prefills": num_partial,
        "max_long_partial_prefills": rng.randrange(1, num_partial + 1),
        "long_prefill_token_threshold": rng.choice([0, 0, 1, 4, 10]),
        "scheduler_reserve_full_isl": rng.random() < 0.6,
        "scheduling_policy": rng.choice(["fcfs", "priority", "fair"]),
        "enable_prefix_caching": rng.random() < 0.8,
        "prefix_caching_hash_algo": rng.choice(["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"]),
        "disable_hybrid_kv_cache_manager": rng.random() < 0.15,
        "stream_interval": rng.choice([1, 1, 2, 5]),
        "enforce_eager": rng.random() < 0.4,
        "logprobs_mode": rng.choice(
            ["raw_logprobs", "raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
        ),
        "max_logprobs": -1,
        "enable_prompt_embeds": True,
        "enable_sleep_mode": True,
    }
    if rng.random() < 0.15:
        settings |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(num_tokens, max_model_len),
            "max_num_partial_prefills": 1,
            "max_long_partial_prefills": 1,
            "long_prefill_token_threshold": 0,
        }
    if rng.random() < 0.3:
        settings["logits_processors"] = ["tests.engine.sampling.custom_processors:Steer"]
    return settings
