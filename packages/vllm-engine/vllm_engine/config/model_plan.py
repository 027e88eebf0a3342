"""What the settings and a model's small files decide together: known at once, long before the weights are loaded."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vllm_engine import envs
from vllm_engine.config.decoder import DecoderConfig, default_max_model_len, resolve_dtype
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import EngineConfig, ModelConfig
from vllm_engine.config.groups.model import AUTO
from vllm_engine.config.model_files import config_folder
from vllm_engine.config.quantization import refuse_quantized_folder
from vllm_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model as it will be run.

    ``dtype`` is that of the weights and ``kv_cache_dtype`` that of cached keys and values: ``float32``, ``float16`` or
    ``bfloat16``. ``max_model_len`` is the longest sequence; where the setting is ``auto``, the memory may still lower
    it. ``warnings`` are what the log should say, once.
    """

    decoder: DecoderConfig
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    warnings: tuple[str, ...] = ()


def plan_model(config: EngineConfig, model_path: Path) -> ModelPlan:
    """Read the model's configuration and hold the settings against it.

    Raises:
        ConfigError: for a configuration that is broken or not supported, quantised weights, or settings that the model
            cannot meet.
    """
    settings = config.model
    decoder = load_decoder_config(config_folder(config, model_path), settings.hf_overrides)
    refuse_quantized_folder(model_path)
    dtype = resolve_dtype(settings.dtype, decoder)
    cache_dtype = config.cache.kv_cache_dtype
    longest = default_max_model_len(decoder)
    if settings.disable_sliding_window and decoder.windows:
        longest = _within_windows(settings, min(longest, *decoder.windows))
        # Up to here a window hides nothing. The kinds of layers stay: each has its own rotary embedding.
        decoder = dataclasses.replace(decoder, sliding_window=None)
    warnings = []
    if settings.dtype == "auto" and decoder.dtype not in (None, "float32", dtype):
        warnings.append(f"the checkpoint is {decoder.dtype}, but its values may exceed those; running in {dtype}")
    max_model_len = longest if settings.max_model_len in (None, AUTO) else settings.max_model_len
    if max_model_len > longest:
        warnings.append(_beyond(max_model_len, longest, decoder))
    return ModelPlan(decoder, dtype, dtype if cache_dtype == "auto" else cache_dtype, max_model_len, tuple(warnings))


def _within_windows(settings: ModelConfig, window: int) -> int:
    if settings.max_model_len is not None and settings.max_model_len > window:
        raise ConfigError(
            f"max_model_len={settings.max_model_len} is more than the {window} tokens of the model's sliding window, "
            "which disable_sliding_window makes the longest sequence",
            field="max_model_len",
        )
    return window


def _beyond(asked: int, longest: int, decoder: DecoderConfig) -> str:
    """The warning of a length that was allowed. Raises ``ConfigError`` where it is not."""
    text = f"max_model_len={asked} is more than the {longest} positions of the model"
    if decoder.rope is None:  # learned positions: there are no more
        raise ConfigError(text, field="max_model_len")
    if not envs.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        raise ConfigError(
            f"{text}; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 allows it, but the text may become nonsense",
            field="max_model_len",
        )
    return f"{text}; the text may become nonsense there"
