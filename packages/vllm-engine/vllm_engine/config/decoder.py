"""``DecoderConfig``: every number that a decoder-only language model needs.

No torch and no transformers here, so that the processes without a model can ask about it too.
"""

import math
from dataclasses import dataclass

from vllm_engine.config.device import Gpu
from vllm_engine.config.rope import RopeConfig
from vllm_engine.errors import ConfigError

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder-only model. One class for all families: a family fills in what it has.

    ``layer_types`` says for each layer whether it is ``full_attention`` or ``sliding_attention``; a sliding layer
    sees the last ``sliding_window`` tokens, itself included. ``rope`` is None for models with learned positions;
    ``local_rope`` is the rotary embedding of the sliding layers where they have their own. ``dtype`` is the
    checkpoint's (None when the file does not say). ``activation`` is ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    layer_types: tuple[str, ...]
    sliding_window: int | None = None
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_pre_attn_scalar: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embedding_scale: float | None = None
    dtype: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    word_embed_proj_dim: int | None = None
    """OPT: width of the token embedding, when it is projected to ``hidden_size`` and back."""
    do_layer_norm_before: bool = True
    """OPT: whether a block normalises its input (True) or its output."""
    final_layer_norm: bool = True
    """OPT: whether a norm follows the last block."""
    layer_norm_affine: bool = True
    """OPT: whether layer norms have weights and biases."""
    scale_attention_by_layer: bool = False
    """GPT-2: whether scores of layer ``i`` are also divided by ``i + 1``."""

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied with before softmax."""
        return math.pow(self.query_pre_attn_scalar or self.head_dim, -0.5)

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding windows that layers have; all have the same, so there is one or none."""
        return (self.sliding_window,) if self.sliding_window is not None and SLIDING in self.layer_types else ()

    def layer_window(self, layer_index: int) -> int | None:
        """Tokens that a layer can see, itself included; None is all."""
        return self.sliding_window if self.layer_types[layer_index] == SLIDING else None

    def layer_rope(self, layer_index: int) -> RopeConfig:
        """Rotary embedding of a layer. Raises ``ConfigError`` for a model with learned positions."""
        local = self.local_rope if self.layer_types[layer_index] == SLIDING else None
        rope = local or self.rope
        if rope is None:
            raise ConfigError(f"{self.architecture} has no rotary embedding", field="rope_parameters")
        return rope


def default_max_model_len(config: DecoderConfig) -> int:
    """Longest sequence the model is made for, in tokens.

    ``max_position_embeddings``, except where that is the length before the context was extended:
    ``linear`` and ``dynamic`` scale it by their factor, and ``yarn`` reaches ``factor`` times
    ``original_max_position_embeddings``. ``llama3`` and ``longrope`` checkpoints already give the extended length, and
    so do Gemma 3's (whose ``linear`` factor is part of it).
    """
    rope = config.rope
    if rope is None or config.local_rope is not None:
        return config.max_position_embeddings
    if rope.rope_type in ("linear", "dynamic"):
        return int(config.max_position_embeddings * rope.factor)
    if rope.rope_type == "yarn":
        return int(rope.original_max_position_embeddings * rope.factor)
    return config.max_position_embeddings


def resolve_dtype(requested: str, config: DecoderConfig, gpu: Gpu | None = None) -> str:
    """The data type of weights and activations: ``float32``, ``float16`` or ``bfloat16``.

    ``auto`` takes the checkpoint's; a float32 checkpoint, or one that does not say, runs in bfloat16 at half the
    memory traffic, and so does a float16 Gemma. ``float32`` (or ``float``) forces full precision. A ``gpu`` without
    bfloat16 takes float16 in its place.

    Raises:
        ConfigError: float16 for a Gemma model, or bfloat16 for a GPU that has none.
    """
    chosen = {"half": "float16", "float": "float32"}.get(requested, requested)
    if chosen == "auto":
        chosen = "bfloat16" if config.dtype in (None, "float32") else config.dtype
    if chosen == "float16" and config.model_type.startswith("gemma"):
        if requested != "auto":
            raise ConfigError(
                f"dtype {requested}: Gemma's activations exceed the largest float16 value (65504) and become infinite; "
                "use bfloat16 or float32",
                field="dtype",
            )
        chosen = "bfloat16"
    if chosen == "bfloat16" and gpu is not None and not gpu.has_bfloat16:
        if requested != "auto" or config.model_type.startswith("gemma"):
            other = "float32" if config.model_type.startswith("gemma") else "float16 or float32"
            raise ConfigError(f"dtype {requested}: {gpu} does not compute in bfloat16; use {other}", field="dtype")
        chosen = "float16"
    return chosen
