"""From the ``config.json`` of a model folder to a ``DecoderConfig``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.config.families import read_family
from vllm_engine.config.lfs_pointer import refuse_pointer
from vllm_engine.errors import ConfigError


def load_decoder_config(path: Path, overrides: Mapping[str, Any] | None = None) -> DecoderConfig:
    """Read and check ``config.json`` of a model folder.

    Args:
        path: the model's folder.
        overrides: keys that replace those of the file (``hf_overrides``); an object under ``text_config`` is merged.

    Raises:
        ConfigError: no readable file, an unknown architecture (the message lists the known ones), a value that is
            missing, of the wrong type or contradicts another (the message names the key), or an override that this
            architecture does not read.
    """
    return read_family(_read_json(path / "config.json"), dict(overrides or {}))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        refuse_pointer(path, "model")
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent} has no config.json, so it is no model folder", field="model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}", field="model") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object", field="model")
    return data
