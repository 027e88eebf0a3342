"""Settings of earlier versions: still accepted, each with one warning that says what to write instead."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vllm_engine import envs
from vllm_engine.config.option import option
from vllm_engine.config.settings import Setting, settings_of
from vllm_engine.config.support import shown
from vllm_engine.config.values import convert
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

_TASKS: dict[str, dict[str, str]] = {
    "auto": {},
    "generate": {"runner": "generate"},
    "draft": {"runner": "draft"},
    "embed": {"runner": "pooling", "convert": "embed"},
    "embedding": {"runner": "pooling", "convert": "embed"},
    "classify": {"runner": "pooling", "convert": "classify"},
    "score": {"runner": "pooling", "convert": "classify"},
    "reward": {"runner": "pooling"},
    "transcription": {"runner": "generate"},
}


def old(default: Any, instead: str, *, becomes: Any = None, refused: bool = False, **facts: Any) -> Any:
    """A setting of an earlier version.

    Args:
        default: what it was when not given.
        instead: what to do instead, or why nothing need be done; the help text and the warning say it.
        becomes: from its value to the new settings that mean the same; without it the setting has no effect.
        refused: any value but the default asks for something that is gone, and is refused.
        facts: as of ``option``.
    """
    return option(default, help=instead, becomes=becomes, refused=refused, **facts)


def _renamed(name: str) -> Any:
    return lambda value: {name: value}


def _graph_sizes(value: list[int]) -> dict[str, Any]:
    """One size was the largest of the usual ones, several were all."""
    if len(value) == 1:
        return {"max_cudagraph_capture_size": value[0]}
    return {"cudagraph_capture_sizes": value}


@dataclass(frozen=True, kw_only=True)
class OldOptions:
    """Settings of earlier versions, accepted with a warning."""

    GROUP: ClassVar[str] = "Deprecated"

    disable_log_requests: bool = old(
        False,
        "requests are not logged unless --enable-log-requests is given",
        becomes=lambda value: {"enable_log_requests": False} if value else {},
    )
    use_v2_block_manager: bool = old(True, "there is one block manager")
    disable_async_output_proc: bool = old(False, "output is always processed beside the steps")
    logits_processor_pattern: str | None = old(None, "name classes by --logits-processors", refused=True)
    max_seq_len_to_capture: int = old(8192, "use --max-cudagraph-capture-size, which counts requests")
    override_neuron_config: dict[str, Any] = old({}, "use --additional-config", becomes=_renamed("additional_config"))
    override_pooler_config: dict[str, Any] | None = old(None, "use --pooler-config", becomes=_renamed("pooler_config"))
    rope_scaling: dict[str, Any] = old(
        {}, "use --hf-overrides.rope_scaling", becomes=lambda value: {"hf_overrides": {"rope_scaling": value}}
    )
    rope_theta: float | None = old(
        None, "use --hf-overrides.rope_theta", becomes=lambda value: {"hf_overrides": {"rope_theta": value}}
    )
    task: Literal["auto", "generate", "embedding", "embed", "classify", "score", "reward", "transcription", "draft"] = (
        old("auto", "use --runner and --convert", becomes=_TASKS.__getitem__)
    )
    qlora_adapter_name_or_path: str | None = old(None, "adapters are read with --enable-lora")
    enable_reasoning: bool | None = old(None, "--reasoning-parser alone is enough")
    guided_decoding_backend: Literal["auto", "guidance", "lm-format-enforcer", "outlines", "xgrammar"] = old(
        "auto",
        "use --structured-outputs-config.backend",
        becomes=lambda value: {"structured_outputs_config": {"backend": value}},
    )
    guided_decoding_disable_fallback: bool = old(False, "there is no fallback to another backend")
    guided_decoding_disable_any_whitespace: bool = old(
        False,
        "use --structured-outputs-config.disable_any_whitespace",
        becomes=lambda value: {"structured_outputs_config": {"disable_any_whitespace": value}},
    )
    guided_decoding_disable_additional_properties: bool = old(
        False,
        "use --structured-outputs-config.disable_additional_properties",
        becomes=lambda value: {"structured_outputs_config": {"disable_additional_properties": value}},
    )
    enable_multimodal_encoder_data_parallel: bool = old(
        False,
        "use --mm-encoder-tp-mode data",
        becomes=lambda value: {"mm_encoder_tp_mode": "data"} if value else {},
    )
    swap_space: float = old(4.0, "preempted requests are computed again, never swapped out")
    disable_mm_preprocessor_cache: bool = old(
        False, "use --mm-processor-cache-gb 0", becomes=lambda value: {"mm_processor_cache_gb": 0.0} if value else {}
    )
    enable_lora_bias: bool = old(False, "adapters have no bias any more")
    long_lora_scaling_factors: list[float] | None = old(None, "adapters are scaled by their own configuration")
    lora_extra_vocab_size: int = old(256, "adapters add no tokens any more")
    enable_prompt_adapter: bool | None = old(None, "prompt adapters are gone; nothing replaces them", refused=True)
    max_prompt_adapters: int = old(1, "prompt adapters are gone")
    max_prompt_adapter_token: int = old(0, "prompt adapters are gone")
    multi_step_stream_outputs: bool = old(True, "every step gives its tokens at once; see --stream-interval")
    num_lookahead_slots: int = old(0, "use --speculative-config.num_speculative_tokens")
    num_scheduler_steps: int = old(1, "the scheduler runs before every step")
    preemption_mode: Literal["recompute", "swap"] | None = old(None, "preempted requests are always computed again")
    scheduler_delay_factor: float = old(0.0, "the scheduler never waits")
    cuda_graph_sizes: list[int] = old(
        [512], "use --cudagraph-capture-sizes or --max-cudagraph-capture-size", becomes=_graph_sizes
    )
    tokenizer_pool_size: int = old(0, "see --renderer-num-workers")
    tokenizer_pool_type: str = old("ray", "see --renderer-num-workers")
    tokenizer_pool_extra_config: dict[str, Any] = old({}, "see --renderer-num-workers")


_OLD_VALUES = {("prefix_caching_hash_algo", "builtin"): "sha256"}
"""Values of earlier versions for settings that remain."""


def translate(options: Mapping[str, Any], old_options: type[Any] = OldOptions) -> dict[str, Any]:
    """``options`` with every setting of ``old_options`` replaced by what it means now; one warning for each.

    Raises:
        ConfigError: for a value that does not fit, a setting whose purpose is gone, or one given in both spellings.
    """
    known = settings_of(old_options)
    options = _with_old_levels(options)
    result = {name: _new_value(name, value) for name, value in options.items() if name not in known}
    for name, setting in known.items():
        if name in options:
            for new, value in _meaning(setting, convert(setting, options[name])).items():
                result[new] = _merged(new, result[new], value, setting) if new in result else value
    return result


def _with_old_levels(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """``-O '{"level": 3}'`` used to set up the compiler, and ``level`` was the name of its ``mode``."""
    level = options.get("optimization_level")
    if isinstance(level, str) and level.lstrip().startswith("{"):
        try:
            keys = json.loads(level)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"optimization_level: not valid JSON ({error})", field="optimization_level") from error
        _warn("-O with an object is deprecated: use --compilation-config")
        options = {name: value for name, value in options.items() if name != "optimization_level"}
        options = {**options, "compilation_config": options.get("compilation_config", keys)}
    held = options.get("compilation_config")
    if isinstance(held, Mapping) and "level" in held and "mode" not in held:
        _warn("--compilation-config.level is deprecated: use --compilation-config.mode")
        keys = {"mode" if key == "level" else key: value for key, value in held.items()}
        options = {**options, "compilation_config": keys}
    return options


def _new_value(name: str, value: Any) -> Any:
    new = _OLD_VALUES.get((name, value)) if isinstance(value, str) else None
    if new is None:
        return value
    _warn("%s=%s is deprecated: %s is used", name, value, new)
    return new


def _meaning(setting: Setting, value: Any) -> dict[str, Any]:
    becomes, instead = setting.facts["becomes"], setting.help
    unusual = value != setting.default and value not in setting.facts["possible"]
    if setting.facts["refused"] and unusual:
        raise ConfigError(f"{setting.name}={shown(value)} cannot be honoured: {instead}", field=setting.name)
    if becomes is None:
        _warn("%s is deprecated and has no effect: %s", setting.flag, instead)
        return {}
    _warn("%s is deprecated: %s", setting.flag, instead)
    meaning: dict[str, Any] = becomes(value) if value != setting.default or setting.default is not None else {}
    return meaning


def _warn(message: str, *values: Any) -> None:
    if not envs.get("VLLM_NO_DEPRECATION_WARNING"):
        logger.warning(message, *values)


def _merged(name: str, given: Any, meant: Any, setting: Setting) -> Any:
    if isinstance(given, Mapping) and isinstance(meant, Mapping):
        clash = next((key for key in meant if key in given and given[key] != meant[key]), None)
        if clash is None:
            return {**meant, **given}
        name = f"{name}.{clash}"
    elif given == meant:
        return given
    raise ConfigError(f"{setting.name} is the old name of {name}, and both are given", field=setting.name)
