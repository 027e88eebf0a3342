"""Quantised checkpoints: found by what their small files say, and refused before their weights are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_engine.errors import ConfigError

_METHOD_KEYS = ("quant_method", "quant_algo", "quant_type", "format")
_FILES = {"hf_quant_config.json": "quantization", "quantize_config.json": None, "quant_config.json": None}
"""Files beside ``config.json`` in which older and other tools say so -> the key that holds the facts, if any."""
_POSSIBLE = (
    "possible: checkpoints in float32, float16 or bfloat16, such as the one that it was made from, as they are or with "
    "--quantization int8, int4 or fp8"
)


def refuse_quantized(facts: Any, where: str) -> None:
    """Raise ``ConfigError`` with the method's name when ``facts``, which stand at ``where``, say that there is one."""
    if facts:
        method = facts
        if isinstance(facts, Mapping):
            method = next((facts[key] for key in _METHOD_KEYS if facts.get(key)), None)
        named = f"quantised with {str(method)[:80]}" if method else "quantised"
        raise ConfigError(
            f"{where}: the checkpoint is {named}, and this version reads no quantised weights; {_POSSIBLE}",
            field="quantization",
        )


def refuse_quantized_folder(folder: Path) -> None:
    """Raise ``ConfigError`` when a file beside ``config.json`` says that the weights are quantised."""
    for name, key in _FILES.items():
        try:
            data = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read {folder / name}: {error}", field="quantization") from error
        refuse_quantized(data.get(key, data) if key and isinstance(data, dict) else data, name)
