"""What the settings and a model's small files decide together: known at once, long before the weights are loaded."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import msgspec

from vllm_engine import envs
from vllm_engine.config.decoder import DecoderConfig, default_max_model_len, resolve_dtype
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.device import Gpu, first_gpu
from vllm_engine.config.groups import CacheConfig, EngineConfig, ModelConfig
from vllm_engine.config.groups.model import AUTO
from vllm_engine.config.model_files import config_folder
from vllm_engine.config.quantization import refuse_quantized_folder
from vllm_engine.errors import ConfigError
from vllm_kernels.cache_format import CacheFormat

FloatType = Literal["float32", "float16", "bfloat16"]
SLIDING_LAYERS = "sliding_window"
"""In ``kv_cache_dtype_skip_layers``: all layers with one."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model as it will be run.

    ``dtype`` is that of the weights: ``float32``, ``float16`` or ``bfloat16``; ``cache_formats`` say for each layer how
    it caches keys and values. ``max_model_len`` is the longest sequence; where the setting is ``auto``, the memory may
    still lower it. ``warnings`` are what the log should say, once.
    """

    decoder: DecoderConfig
    dtype: FloatType
    cache_formats: tuple[CacheFormat, ...]
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
    gpu = first_gpu() if config.device.kind == "cuda" else None
    if settings.quantization == "fp8":
        _refuse_fp8_weights(gpu)
    dtype = cast(FloatType, resolve_dtype(settings.dtype, decoder, gpu))
    longest = default_max_model_len(decoder)
    if settings.disable_sliding_window and decoder.windows:
        longest = _within_windows(settings, min(longest, *decoder.windows))
        # Up to here a window hides nothing. The kinds of layers stay: each has its own rotary embedding.
        decoder = dataclasses.replace(decoder, sliding_window=None)
    warnings = []
    if settings.dtype == "auto" and decoder.dtype not in (None, "float32", dtype):
        because = "but its values may exceed those" if dtype == "bfloat16" else f"which {gpu} does not compute in"
        warnings.append(f"the checkpoint is {decoder.dtype}, {because}; running in {dtype}")
    max_model_len = longest if settings.max_model_len in (None, AUTO) else settings.max_model_len
    if max_model_len > longest:
        warnings.append(_beyond(max_model_len, longest, decoder))
    formats = _cache_formats(config.cache, decoder, dtype)
    if gpu is not None:
        _refuse_e4m3(config.cache, formats, gpu)
    return ModelPlan(decoder, dtype, formats, max_model_len, tuple(warnings))


def _cache_formats(settings: CacheConfig, decoder: DecoderConfig, dtype: str) -> tuple[CacheFormat, ...]:
    """The format of each layer's cache. Raises ``ConfigError`` for a layer to skip that is not there."""
    own = msgspec.convert(dtype, CacheFormat)
    name = settings.kv_cache_dtype
    if name == "auto":
        name = own
    asked = msgspec.convert("fp8_e4m3" if name == "fp8" else name, CacheFormat)
    skipped = settings.kv_cache_dtype_skip_layers
    for entry in skipped:
        if entry != SLIDING_LAYERS and not (entry.isdecimal() and int(entry) < decoder.num_layers):
            raise ConfigError(
                f"kv_cache_dtype_skip_layers takes layers from 0 to {decoder.num_layers - 1} and {SLIDING_LAYERS!r}, "
                f"got {entry!r}",
                field="kv_cache_dtype_skip_layers",
            )
    numbers = {int(entry) for entry in skipped if entry != SLIDING_LAYERS}
    if SLIDING_LAYERS in skipped:
        numbers.update(index for index in range(decoder.num_layers) if decoder.layer_window(index) is not None)
    return tuple(own if index in numbers else asked for index in range(decoder.num_layers))


def _refuse_fp8_weights(gpu: Gpu | None) -> None:
    """Raise ``ConfigError`` where there are no products of fp8 numbers; a CPU is None."""
    if gpu is None:
        raise ConfigError(
            "quantization=fp8: a CPU has no products of fp8 numbers; use int8, which takes as much memory, or int4",
            field="quantization",
        )
    if not gpu.has_e4m3:
        raise ConfigError(
            f"quantization=fp8: {gpu} has no instructions for fp8 e4m3; use int8 or int4", field="quantization"
        )


def _refuse_e4m3(settings: CacheConfig, formats: tuple[CacheFormat, ...], gpu: Gpu) -> None:
    """Raise ``ConfigError`` for layers that a GPU's kernels cannot cache as asked."""
    if not gpu.has_e4m3 and {"fp8_e4m3", "fp8_per_token_head"} & set(formats):
        raise ConfigError(
            f"kv_cache_dtype={settings.kv_cache_dtype}: {gpu} has no instructions for fp8 e4m3; use fp8_e5m2 or "
            "int8_per_token_head",
            field="kv_cache_dtype",
        )


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
