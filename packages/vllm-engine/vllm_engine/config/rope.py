"""Rotary position embedding: its parameters as ``config.json`` gives them, checked and typed. No tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_engine.config.json_fields import JsonFields

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """One rotary embedding. Names are those of ``rope_parameters``; values that a type does not use keep defaults.

    ``rotary_dim`` channels of each head are rotated, the rest pass through. ``max_position_embeddings`` is the
    model's own, ``original_max_position_embeddings`` the length before the context was extended.
    """

    rope_type: str
    rope_theta: float
    rotary_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def read_rope(
    fields: JsonFields,
    *,
    head_dim: int,
    max_position_embeddings: int,
    default_theta: float = 10000.0,
    default_local_theta: float | None = None,
    default_original: int | None = None,
    type_aliases: Mapping[str, str] | None = None,
) -> tuple[RopeConfig, RopeConfig | None]:
    """Rotary embedding of the full-attention layers, and of the sliding ones where it is given separately (else None).

    Reads ``rope_parameters`` (one object, or one per layer type) as well as the older ``rope_theta``,
    ``rope_scaling`` and ``partial_rotary_factor``. ``default_local_theta`` is given by families whose sliding layers
    always rotate on their own (the older spelling of their base is ``rope_local_base_freq``). ``default_original``
    and ``type_aliases`` are a family's own default for ``original_max_position_embeddings`` and its older names for
    rope types.

    Raises:
        ConfigError: a missing key of the rope type, a value out of range, or an unknown rope type.
    """
    given = fields.object("rope_scaling", "rope_parameters") or {}
    nested = {key: value for key, value in given.items() if key in _LAYER_TYPES}
    theta = fields.number("rope_theta", default=default_theta)
    local_theta = theta
    if default_local_theta is not None:
        local_theta = fields.number("rope_local_base_freq", default=default_local_theta)
    partial = fields.number("partial_rotary_factor", default=1.0)
    # A length at the top level wins over one inside, as it does in transformers.
    outer_original = fields.optional_integer("original_max_position_embeddings")

    def read(parameters: Any, base: float) -> RopeConfig:
        if not isinstance(parameters, dict):
            raise fields.error("rope_parameters", "an object", parameters)
        present = {key: value for key, value in parameters.items() if value is not None}
        inner = JsonFields(
            {"rope_theta": base, "partial_rotary_factor": partial, **present},
            f"{fields.where_of('rope_scaling')}: rope_parameters",
        )
        original = outer_original or inner.optional_integer("original_max_position_embeddings")
        return _read_one(
            inner,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
            original=original or default_original or max_position_embeddings,
            type_aliases=type_aliases or {},
        )

    if not nested:
        return read(given, theta), None if default_local_theta is None else read({}, local_theta)
    full = read(nested.get("full_attention") or {}, theta)
    return full, read(nested.get("sliding_attention") or {}, local_theta)


def _read_one(
    fields: JsonFields,
    *,
    head_dim: int,
    max_position_embeddings: int,
    original: int,
    type_aliases: Mapping[str, str],
) -> RopeConfig:
    rope_type = fields.text("rope_type", "type", default="default")
    rope_type = type_aliases.get(rope_type, rope_type)
    if rope_type not in ROPE_TYPES:
        raise fields.error("rope_type", f"one of {', '.join(ROPE_TYPES)}", rope_type)
    rotary_dim = int(head_dim * fields.number("partial_rotary_factor"))
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise fields.refusal(
            f"partial_rotary_factor rotates {rotary_dim} of {head_dim} channels of a head; it must be an even number "
            f"from 2 to {head_dim}",
            "partial_rotary_factor",
        )
    options: dict[str, Any] = {
        "rope_type": rope_type,
        "rope_theta": fields.number("rope_theta"),
        "rotary_dim": rotary_dim,
        "max_position_embeddings": max_position_embeddings,
        "original_max_position_embeddings": original,
    }
    if rope_type in ("linear", "dynamic", "llama3"):
        options["factor"] = fields.number("factor")
    if rope_type == "dynamic" and (rotary_dim <= 2 or options["factor"] < 1):
        raise fields.refusal("dynamic needs a factor of at least 1 and 4 channels", "factor")
    if rope_type in ("yarn", "longrope"):
        options["factor"] = fields.number("factor", default=max_position_embeddings / original)
        options["attention_factor"] = fields.optional_number("attention_factor")
    if rope_type == "llama3":
        options["low_freq_factor"] = fields.number("low_freq_factor")
        options["high_freq_factor"] = fields.number("high_freq_factor")
        if options["high_freq_factor"] <= options["low_freq_factor"]:
            raise fields.error(
                "high_freq_factor",
                f"more than low_freq_factor ({options['low_freq_factor']:g})",
                options["high_freq_factor"],
            )
    if rope_type == "yarn":
        options["beta_fast"] = fields.number("beta_fast", default=32.0)
        options["beta_slow"] = fields.number("beta_slow", default=1.0)
        # A zero here means "not given" in several published configurations.
        for name in ("mscale", "mscale_all_dim"):
            options[name] = fields.optional_number(name) if fields.raw(name) != 0 else None
        options["truncate"] = fields.boolean("truncate", default=True)
    if rope_type == "longrope":
        options["short_factor"] = fields.numbers("short_factor", length=rotary_dim // 2)
        options["long_factor"] = fields.numbers("long_factor", length=rotary_dim // 2)
        if original < 2:
            raise fields.error("original_max_position_embeddings", "at least 2", original)
    return RopeConfig(**options)
