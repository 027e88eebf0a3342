"""How each family of models spells its ``config.json``, and which values it leaves out.

The defaults are those of the configuration classes in transformers, which published checkpoints rely on.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vllm_engine.config.decoder import FULL, SLIDING, DecoderConfig
from vllm_engine.config.json_fields import REQUIRED, JsonFields
from vllm_engine.config.overrides import flatten
from vllm_engine.config.quantization import refuse_quantized
from vllm_engine.config.rope import read_rope
from vllm_engine.errors import ConfigError

_MAX_LAYERS = 4096
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_DTYPES = ("float32", "float16", "bfloat16")


def read_family(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> DecoderConfig:
    """The parsed ``config.json`` after ``overrides``, checked. Errors: as of ``load_decoder_config``."""
    flat, overridden = flatten(data, overrides)
    fields = JsonFields(flat, overridden=overridden)
    for key in ("quantization_config", "compression_config"):
        refuse_quantized(fields.raw(key), f"{fields.where_of(key)}: {key}")
    listed = fields.raw("architectures")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise fields.refusal("architectures is missing: it names the model's class", "architectures")
    architecture = next((name for name in listed if name in FAMILIES), None)
    if architecture is None:
        raise fields.refusal(
            f"architecture {', '.join(listed) or '(none)'} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "architectures",
        )
    config = DecoderConfig(**FAMILIES[architecture](fields), architecture=architecture)
    _check(config, fields)
    unread = sorted(overridden - fields.read)
    if unread:
        raise ConfigError(f"hf_overrides: {architecture} does not read {', '.join(unread)}", field="hf_overrides")
    return config


def _common(fields: JsonFields, *, head_dim: int | None = None, **defaults: Any) -> dict[str, Any]:
    """What all families have under the same names. ``defaults`` hold by key of ``config.json``."""

    def integer(name: str, **limits: int) -> int:
        return fields.integer(name, default=defaults.get(name, REQUIRED), **limits)

    num_heads = integer("num_attention_heads")
    hidden_size = integer("hidden_size")
    head_dim = fields.optional_integer("head_dim") or head_dim
    if head_dim is None:
        if hidden_size % num_heads:
            raise fields.refusal(
                f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_heads}), and head_dim is "
                "not given",
                "hidden_size",
                "num_attention_heads",
            )
        head_dim = hidden_size // num_heads
    num_layers = integer("num_hidden_layers", at_most=_MAX_LAYERS)
    return {
        "vocab_size": integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", default=defaults.get("num_key_value_heads", num_heads)),
        "head_dim": head_dim,
        "max_position_embeddings": integer("max_position_embeddings"),
        "tie_word_embeddings": fields.boolean(
            "tie_word_embeddings", default=defaults.get("tie_word_embeddings", False)
        ),
        "layer_types": (FULL,) * num_layers,
        **_identity(fields),
    }


def _identity(fields: JsonFields) -> dict[str, Any]:
    """Model type, token ids and the checkpoint's data type."""
    dtype = fields.raw("dtype", "torch_dtype")
    if dtype is not None:
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise fields.error("dtype", f"one of {', '.join(_DTYPES)}", dtype)
    bos = fields.token_ids("bos_token_id")
    return {
        "model_type": fields.text("model_type"),
        "dtype": dtype,
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": fields.token_ids("eos_token_id"),
    }


def _rms_decoder(fields: JsonFields, *, norm_eps: float, activation_key: str = "hidden_act", **defaults: Any) -> Any:
    """``_common`` and what the RMS-norm, gated-MLP families share."""
    common = _common(fields, **defaults)
    return {
        **common,
        "intermediate_size": fields.integer("intermediate_size", default=defaults.get("intermediate_size", REQUIRED)),
        "norm_eps": fields.number("rms_norm_eps", default=norm_eps),
        "activation": _activation(fields, activation_key, defaults.get("activation", "silu"), gated=True),
    }


def _rope(fields: JsonFields, common: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    rope, local = read_rope(
        fields,
        head_dim=common["head_dim"],
        max_position_embeddings=common["max_position_embeddings"],
        **defaults,
    )
    return {"rope": rope, "local_rope": local}


def _activation(fields: JsonFields, key: str, default: str, *, gated: bool = False) -> str:
    name = fields.text(key, default=default)
    known = {spelled: meant for spelled, meant in _ACTIVATIONS.items() if not (gated and meant == "relu")}
    if name not in known:
        raise fields.error(key, f"one of {', '.join(known)}", name)
    return known[name]


def _layer_types(fields: JsonFields, num_layers: int, default: Callable[[int], bool]) -> tuple[str, ...]:
    """The listed layer types, or by ``default``: whether layer ``i`` is a sliding one."""
    listed = fields.raw("layer_types")
    if listed is None:
        return tuple(SLIDING if default(index) else FULL for index in range(num_layers))
    if not isinstance(listed, list) or len(listed) != num_layers or any(kind not in (FULL, SLIDING) for kind in listed):
        raise fields.error("layer_types", f"{num_layers} times {FULL} or {SLIDING}", listed)
    return tuple(listed)


def _llama(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(fields, norm_eps=1e-6, max_position_embeddings=2048)
    bias = fields.boolean("attention_bias", default=False)
    return {
        **common,
        **_rope(fields, common),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": fields.boolean("mlp_bias", default=False),
    }


def _mistral(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(fields, norm_eps=1e-6, max_position_embeddings=131072, num_key_value_heads=8)
    # Absent means 4096, null means none.
    window = fields.optional_integer("sliding_window") if fields.has("sliding_window") else 4096
    kind = FULL if window is None else SLIDING
    return {
        **common,
        **_rope(fields, common),
        "sliding_window": window,
        "layer_types": (kind,) * common["num_layers"],
    }


def _qwen_windows(fields: JsonFields, common: Mapping[str, Any]) -> dict[str, Any]:
    """Sliding attention from layer ``max_window_layers`` up, only when ``use_sliding_window`` says so."""
    if not fields.boolean("use_sliding_window", default=False):
        # Still read: a list that names sliding layers contradicts the switch.
        types = _layer_types(fields, common["num_layers"], lambda index: False)
        return {"layer_types": types}
    window = fields.optional_integer("sliding_window") if fields.has("sliding_window") else 4096
    first = fields.raw("max_window_layers")
    first = 28 if first is None else first
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise fields.error("max_window_layers", "a whole number of at least 0", first)
    types = _layer_types(fields, common["num_layers"], lambda index: window is not None and index >= first)
    return {"sliding_window": window, "layer_types": types}


def _qwen2(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(fields, norm_eps=1e-6, max_position_embeddings=32768)
    return {**common, **_rope(fields, common), **_qwen_windows(fields, common), "attention_bias": True}


def _qwen3(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(fields, norm_eps=1e-6, max_position_embeddings=32768, head_dim=128)
    bias = fields.boolean("attention_bias", default=False)
    return {
        **common,
        **_rope(fields, common),
        **_qwen_windows(fields, common),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "qk_norm": True,
    }


def _phi3(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(fields, norm_eps=1e-5, max_position_embeddings=4096)
    window = fields.optional_integer("sliding_window")
    return {
        **common,
        **_rope(fields, common, default_original=4096, type_aliases={"su": "longrope", "yarn": "longrope"}),
        "sliding_window": window,
        "layer_types": (FULL if window is None else SLIDING,) * common["num_layers"],
    }


def _gemma(fields: JsonFields, common: dict[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 share: attention scale, soft caps, a scaled embedding."""
    if fields.raw("use_bidirectional_attention"):
        raise fields.refusal(
            "use_bidirectional_attention: only causal models can generate text", "use_bidirectional_attention"
        )
    bias = fields.boolean("attention_bias", default=False)
    return {
        **common,
        "sliding_window": fields.optional_integer("sliding_window") if fields.has("sliding_window") else 4096,
        "attention_bias": bias,
        "attention_output_bias": bias,
        "query_pre_attn_scalar": fields.number("query_pre_attn_scalar", default=256),
        "embedding_scale": common["hidden_size"] ** 0.5,
    }


def _gemma2(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(
        fields,
        norm_eps=1e-6,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        max_position_embeddings=8192,
        num_key_value_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
    )
    return {
        **_gemma(fields, common),
        **_rope(fields, common),
        "layer_types": _layer_types(fields, common["num_layers"], lambda index: index % 2 == 0),
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", 50.0),
        "final_soft_cap": _soft_cap(fields, "final_logit_softcapping", 30.0),
    }


def _gemma3(fields: JsonFields) -> dict[str, Any]:
    common = _rms_decoder(
        fields,
        norm_eps=1e-6,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    )
    pattern = fields.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return {
        **_gemma(fields, common),
        **_rope(fields, common, default_theta=1e6, default_local_theta=1e4),
        "layer_types": _layer_types(fields, common["num_layers"], lambda index: (index + 1) % pattern != 0),
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", None),
        "final_soft_cap": _soft_cap(fields, "final_logit_softcapping", None),
        "qk_norm": True,
    }


def _soft_cap(fields: JsonFields, name: str, default: float | None) -> float | None:
    """Absent means the family's default, null means none."""
    return fields.optional_number(name) if fields.has(name) else default


def _gpt2(fields: JsonFields) -> dict[str, Any]:
    if fields.raw("add_cross_attention"):
        raise fields.refusal("add_cross_attention: only decoder-only models are supported", "add_cross_attention")
    hidden_size = fields.integer("n_embd", "hidden_size")
    num_heads = fields.integer("n_head", "num_attention_heads")
    num_layers = fields.integer("n_layer", "num_hidden_layers", at_most=_MAX_LAYERS)
    return {
        **_identity(fields),
        **_learned_position_heads(fields, hidden_size, num_heads, "n_embd", "n_head"),
        "vocab_size": fields.integer("vocab_size"),
        "num_layers": num_layers,
        "layer_types": (FULL,) * num_layers,
        "intermediate_size": fields.optional_integer("n_inner") or 4 * hidden_size,
        "max_position_embeddings": fields.integer("n_positions", "n_ctx", "max_position_embeddings"),
        "norm_eps": fields.number("layer_norm_epsilon", default=1e-5),
        "activation": _activation(fields, "activation_function", "gelu_new"),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=True),
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "query_pre_attn_scalar": None if fields.boolean("scale_attn_weights", default=True) else 1.0,
        "scale_attention_by_layer": fields.boolean("scale_attn_by_inverse_layer_idx", default=False),
    }


def _opt(fields: JsonFields) -> dict[str, Any]:
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_layers = fields.integer("num_hidden_layers", at_most=_MAX_LAYERS)
    bias = fields.boolean("enable_bias", default=True)
    before = fields.boolean("do_layer_norm_before", default=True)
    embed_dim = fields.integer("word_embed_proj_dim", default=hidden_size)
    return {
        **_identity(fields),
        **_learned_position_heads(fields, hidden_size, num_heads, "hidden_size", "num_attention_heads"),
        "vocab_size": fields.integer("vocab_size"),
        "num_layers": num_layers,
        "layer_types": (FULL,) * num_layers,
        "intermediate_size": fields.integer("ffn_dim"),
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "norm_eps": 1e-5,
        "activation": _activation(fields, "activation_function", "relu"),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=True),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "word_embed_proj_dim": None if embed_dim == hidden_size else embed_dim,
        "do_layer_norm_before": before,
        "final_layer_norm": before and not fields.boolean("_remove_final_layer_norm", default=False),
        "layer_norm_affine": fields.boolean("layer_norm_elementwise_affine", default=True),
    }


def _learned_position_heads(
    fields: JsonFields, hidden_size: int, num_heads: int, size_key: str, heads_key: str
) -> dict[str, int]:
    if hidden_size % num_heads:
        raise fields.refusal(
            f"{size_key} ({hidden_size}) is not a multiple of {heads_key} ({num_heads})", size_key, heads_key
        )
    return {
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
    }


def _check(config: DecoderConfig, fields: JsonFields) -> None:
    """Relations between values that hold for every family."""
    if config.num_heads % config.num_kv_heads:
        raise fields.refusal(
            f"num_attention_heads ({config.num_heads}) is not a multiple of num_key_value_heads "
            f"({config.num_kv_heads})",
            "num_key_value_heads",
            "num_attention_heads",
        )
    if SLIDING in config.layer_types and config.sliding_window is None:
        raise fields.refusal(
            "sliding_window is not given, but layer_types has sliding_attention layers", "sliding_window", "layer_types"
        )


FAMILIES: dict[str, Callable[[JsonFields], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Phi3ForCausalLM": _phi3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "GPT2LMHeadModel": _gpt2,
    "OPTForCausalLM": _opt,
}
"""Reader of each supported architecture, by the name in ``architectures``."""
