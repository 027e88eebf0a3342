"""Default sampling values and end-of-sequence tokens: the model's ``generation_config.json`` and what overrides it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_engine.config.groups import ModelConfig
from vllm_engine.config.json_fields import JsonFields
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.params import SamplingParams

SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Key of ``generation_config.json`` -> field of ``SamplingParams``."""

FILE_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """``sampling``: fields of ``SamplingParams`` for requests that leave them out."""

    sampling: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def load_generation_config(config: ModelConfig, model_path: Path, config_path: Path | None = None) -> GenerationConfig:
    """Read the defaults of a model.

    ``generation_config`` tells where sampling defaults come from: ``auto`` (the model's folder), ``vllm`` (none) or
    another folder; ``override_generation_config`` wins over all. The end-of-sequence ids always come from a file: the
    folder's, else the model's ``generation_config.json``, else ``hf_overrides`` and its ``config.json``, which stands
    in ``config_path`` when that is not the model's folder.

    Raises:
        ConfigError: for files or overrides that are not well-formed, or values that no request may have.
    """
    model_data = _read(model_path / FILE_NAME)
    data = model_data
    if config.generation_config not in ("auto", "vllm"):
        folder = Path(config.generation_config)
        if not (folder / FILE_NAME).is_file():
            raise ConfigError(f"generation_config: there is no {FILE_NAME} in {folder}", field="generation_config")
        data = _read(folder / FILE_NAME)
    sampling = {} if config.generation_config == "vllm" else _sampling(data)
    _check(sampling, FILE_NAME, "generation_config")
    sampling |= _overrides(config.override_generation_config)
    _check(sampling, "override_generation_config", "override_generation_config")
    sources = (config.override_generation_config, data, model_data, config.hf_overrides)
    for source in (*sources, *_model_configs(config_path or model_path)):
        if ids := JsonFields(source, FILE_NAME).token_ids("eos_token_id"):
            return GenerationConfig(sampling, tuple(dict.fromkeys(ids)))
    return GenerationConfig(sampling)


def _check(sampling: dict[str, Any], source: str, field: str) -> None:
    try:
        SamplingParams(**sampling)
    except InvalidRequest as error:
        raise ConfigError(f"{source}: {error}", field=field) from error


def _sampling(data: dict[str, Any]) -> dict[str, Any]:
    values = {ours: data[theirs] for theirs, ours in SAMPLING_FIELDS.items() if data.get(theirs) is not None}
    # A file that says so means greedy decoding; one that is silent means nothing, as most of the hub's are.
    return {**values, "temperature": 0.0} if data.get("do_sample") is False else values


def _overrides(data: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in data if name not in SAMPLING_FIELDS and name != "eos_token_id"]
    if unknown:
        raise ConfigError(
            f"override_generation_config: {unknown[0]} has no effect here; known are {', '.join(SAMPLING_FIELDS)} "
            "and eos_token_id",
            field="override_generation_config",
        )
    return _sampling(data)


def _model_configs(model_path: Path) -> list[dict[str, Any]]:
    """The model's ``config.json`` and the part of it that describes the language model of a multimodal one."""
    config = _read(model_path / "config.json")
    text_config = config.get("text_config")
    return [config, text_config] if isinstance(text_config, dict) else [config]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", field="generation_config") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} must hold a JSON object", field="generation_config")
    return data
