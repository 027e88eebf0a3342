"""Settings in a YAML file (``--config file.yaml``), and a configuration written as one (``--print-config``)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_engine.config.engine_args import nearest
from vllm_engine.config.settings import settings_of
from vllm_engine.errors import ConfigError

_LARGEST_FILE = 1_000_000
"""Bytes of a settings file; a larger one is surely something else."""


class _Loader(yaml.SafeLoader):
    """Plain data only; a key given twice is an error, and so is an alias, by which a few lines become gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_plain_mapping(self, node: Any) -> dict[str, Any]:
        """A mapping whose keys are texts, each once."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is no text")
            if key in mapping:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key} is given twice")
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


# SafeLoader's own constructor for mappings fills them later and would not come by here.
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_mapping)


def read_config_file(path: str, *configs: type[Any]) -> dict[str, Any]:
    """The settings in a YAML file, by name; a key may be written with dashes or underscores.

    Args:
        path: the file.
        configs: the configuration dataclasses whose settings may stand in it.

    Raises:
        ConfigError: for a file that cannot be read or is no YAML mapping, an unknown key (with the nearest known one).
    """
    data = _load(path)
    known = {name: setting for config in configs for name, setting in settings_of(config).items()}
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = key.replace("-", "_")
        if name == "model_tag":
            name = "model"
        if name not in known and name.startswith("no_") and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        if name not in known:
            raise ConfigError(f"config: {path} has an unknown key {key!r}{nearest(name, known)}", field="config")
        if name in found:
            raise ConfigError(f"config: {path} gives {name} in two spellings", field="config")
        if value is None and known[name].default is not None:
            raise ConfigError(f"config: {path} gives {key} without a value", field="config")
        found[name] = value
    return found


def _load(path: str) -> dict[str, Any]:
    if Path(path).suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"config: {path} must be a YAML file, named *.yaml or *.yml", field="config")
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ConfigError(f"config: {path} has more than {_LARGEST_FILE} bytes", field="config")
        data = _Loader(text).get_single_data()
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror or error}", field="config") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config: {path} is not valid YAML: {_fault(error)}", field="config") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"config: {path} must hold keys and values, such as `max-num-seqs: 64`", field="config")
    return data


def _fault(error: Exception) -> str:
    """What is wrong and in which line; not the line itself, which may hold a key or a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"line {error.problem_mark.line + 1}: {error.problem}"
    else:
        text = str(error)
    return " ".join(text.split())[:300]


def lay_over(base: Mapping[str, Any], top: Mapping[str, Any], by_key: set[str]) -> dict[str, Any]:
    """``base`` with the settings of ``top`` in their place; those in ``by_key`` are objects whose keys are merged."""
    merged = {**base, **top}
    for name in by_key & base.keys() & top.keys():
        if isinstance(base[name], Mapping):
            merged[name] = _merged(base[name], top[name])
    return merged


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        held = result.get(key)
        result[key] = _merged(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return result


def write_config(*parts: tuple[type[Any], Mapping[str, Any]]) -> str:
    """YAML that ``read_config_file`` reads back: settings by group, under comments with the groups' names.

    Args:
        parts: configuration dataclasses, each with its settings by name as ``check_options`` gives them.
    """
    lines = []
    for config, options in parts:
        group = ""
        for name, setting in settings_of(config).items():
            if name not in options:
                continue
            if setting.group != group:
                group = setting.group
                lines.append(f"# {group}")
            lines.append(_entry(setting.flag[2:], options[name]))
    return "\n".join(lines)


def _entry(key: str, value: Any) -> str:
    # YAML reads some control characters, such as NEL, as line ends even within quotes: then all is escaped.
    readable = json.dumps(value, ensure_ascii=False).isprintable()
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=readable, width=10**6).rstrip()
