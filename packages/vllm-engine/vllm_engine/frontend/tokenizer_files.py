"""Reading the files of a tokenizer's folder. They come from strangers: everything is checked, nothing is executed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_engine.errors import ConfigError

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the configuration files say. ``special_tokens``: name such as ``eos_token`` -> token."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    extra_special_tokens: list[str] = field(default_factory=list)
    added_tokens: dict[int, Any] = field(default_factory=dict)
    add_bos_token: bool = False
    chat_templates: dict[str, str] = field(default_factory=dict)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read ``tokenizer_config.json``, ``special_tokens_map.json`` and the chat templates of a folder, as far as there.

    Raises:
        ConfigError: for a file that is not what it should be.
    """
    config = read_json_object(folder / "tokenizer_config.json")
    special_map = read_json_object(folder / "special_tokens_map.json")
    tokens = {name: text for name in SPECIAL_TOKEN_NAMES if (text := _token_text(special_map.get(name)))}
    # The newer file wins; names of a model's own (such as image_token) are of use to chat templates.
    tokens |= {name: text for name in config if name.endswith("_token") and (text := _token_text(config[name]))}
    return TokenizerFiles(
        special_tokens=tokens,
        extra_special_tokens=_extra_tokens(config) or _extra_tokens(special_map),
        added_tokens=_added_tokens(config),
        add_bos_token=config.get("add_bos_token") is True,
        chat_templates=_chat_templates(folder, config),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is no such file. Raises ``ConfigError`` for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", field="tokenizer") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} must hold a JSON object", field="tokenizer")
    return data


def _token_text(value: Any) -> str | None:
    """A token is written as its text, or as an object with its text in ``content``."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _extra_tokens(config: dict[str, Any]) -> list[str]:
    for name in ("extra_special_tokens", "additional_special_tokens"):
        value = config.get(name)
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if texts := [text for entry in entries if (text := _token_text(entry))]:
            return texts
    return []


def _added_tokens(config: dict[str, Any]) -> dict[int, Any]:
    value = config.get("added_tokens_decoder")
    if not isinstance(value, dict):
        return {}
    try:
        return {int(token_id): entry for token_id, entry in value.items()}
    except ValueError as error:
        raise ConfigError(
            "tokenizer_config.json: added_tokens_decoder has a key that is no token id", field="tokenizer"
        ) from error


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name. A file of its own wins over ``chat_template.json``, that over ``tokenizer_config.json``."""
    templates = _named_templates(config.get("chat_template"), "tokenizer_config.json")
    templates |= _named_templates(
        read_json_object(folder / "chat_template.json").get("chat_template"), "chat_template.json"
    )
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        try:
            templates[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path.name} cannot be read: {error}", field="chat_template") from error
    return templates


def _named_templates(value: Any, where: str) -> dict[str, str]:
    """One template, an object name -> template, or a list of ``{"name", "template"}``."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair):
        return value
    raise ConfigError(f"{where}: chat_template must be a text or texts by name", field="chat_template")
