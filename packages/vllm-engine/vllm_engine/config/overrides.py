"""``config.json`` as one flat object: a nested language model lifted, and ``hf_overrides`` on top."""

from collections.abc import Mapping
from typing import Any

from vllm_engine.errors import ConfigError

_OUTER_WINS = ("architectures", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "tie_word_embeddings")
"""Keys that speak for the whole checkpoint when a language model is nested under ``text_config``."""
_ROPE_KEYS = {"rope_theta", "partial_rotary_factor", "rope_local_base_freq", "rope_scaling", "rope_parameters"}
_BESIDE_ROPE_SCALING = ("rope_theta", "partial_rotary_factor")
"""Keys that stand inside ``rope_parameters``, and stood beside ``rope_scaling``, its older name."""


def flatten(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The values that hold, and the keys among them that were overridden.

    Raises:
        ConfigError: for a ``text_config`` that is no object.
    """
    outer = {key: data[key] for key in _OUTER_WINS if data.get(key) is not None}
    flat = {**data, **_text_config(data, "config.json", "text_config"), **outer}
    given = {**_text_config(overrides, "hf_overrides", "hf_overrides"), **overrides}
    given.pop("text_config", None)
    if _ROPE_KEYS & given.keys():
        flat = _with_older_rope(flat, keep_local="rope_local_base_freq" not in given)
    return {**flat, **given}, set(given)


def _text_config(source: Mapping[str, Any], where: str, field: str) -> dict[str, Any]:
    part = source.get("text_config") or {}
    if not isinstance(part, dict):
        raise ConfigError(f"{where}: text_config: expected an object, got {part!r}", field=field)
    return part


def _with_older_rope(data: dict[str, Any], *, keep_local: bool) -> dict[str, Any]:
    """``rope_parameters`` in the older spelling, where each value stands by itself and can be overridden by itself."""
    rope = data.get("rope_parameters")
    if not isinstance(rope, dict):
        return data
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    scaling: dict[str, Any] = _without(rope, _BESIDE_ROPE_SCALING)
    lifted = {key: value for key, value in rope.items() if key in _BESIDE_ROPE_SCALING}
    if isinstance(full, dict):
        lifted |= {key: value for key, value in full.items() if key in _BESIDE_ROPE_SCALING}
        scaling["full_attention"] = _without(full, _BESIDE_ROPE_SCALING)
    if isinstance(sliding, dict):
        if "rope_theta" in sliding:
            lifted["rope_local_base_freq"] = sliding["rope_theta"]
        scaling["sliding_attention"] = sliding if keep_local else _without(sliding, ("rope_theta",))
    return {**_without(data, ("rope_parameters",)), **lifted, "rope_scaling": data.get("rope_scaling") or scaling}


def _without(data: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}
