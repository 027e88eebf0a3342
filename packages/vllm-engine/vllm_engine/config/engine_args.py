"""``EngineArgs``: flat keyword arguments in, a checked ``EngineConfig`` out."""

import argparse
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from vllm_engine import envs
from vllm_engine.config.cli import add_settings, given_settings
from vllm_engine.config.groups import EngineConfig
from vllm_engine.config.old_options import OldOptions, translate
from vllm_engine.config.relations import check_relations
from vllm_engine.config.settings import Setting, settings_of
from vllm_engine.config.support import refuse_unsupported, tell_no_effect
from vllm_engine.config.values import convert
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)


class EngineArgs:
    """The settings of an engine as flat keywords: ``EngineArgs(model="demo", max_num_seqs=8)``.

    ``options`` are the given ones, converted. Any setting can be read as an attribute, given or not.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value of the wrong type or range.
    """

    options: dict[str, Any]

    def __init__(self, model: str | None = None, **options: Any) -> None:
        if model is not None:
            options["model"] = model
        self.options = check_options(EngineConfig, translate(options))

    def create_config(self) -> EngineConfig:
        """The checked, immutable configuration, for a device. What the environment asks for is checked with it.

        Raises:
            ConfigError: for settings that contradict one another, or that this version cannot honour.
        """
        config: EngineConfig = build(EngineConfig, _with_forced_load_format(self.options))
        envs.check(strict=config.engine.fail_on_environ_validation)
        device = config.device.kind
        refuse_unsupported(config, device)
        config = dataclasses.replace(config, device=dataclasses.replace(config.device, device=device))
        check_relations(config)
        tell_no_effect(config, device)
        return config

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add a flag for every setting, old ones included; returns ``parser``."""
        add_settings(parser, EngineConfig)
        add_settings(parser, OldOptions)
        return parser

    @classmethod
    def from_cli_args(cls, namespace: argparse.Namespace) -> "EngineArgs":
        """The settings that a parser with these flags found. Raises ``ConfigError`` as the constructor does."""
        return cls(**given_settings(namespace, EngineConfig, OldOptions))

    def __getattr__(self, name: str) -> Any:
        setting = settings_of(EngineConfig).get(name)
        if setting is None or name == "options":
            raise AttributeError(name)
        return self.options.get(name, setting.default)


def _with_forced_load_format(options: dict[str, Any]) -> dict[str, Any]:
    name, forced = "load_format", envs.get("VLLM_TEST_FORCE_LOAD_FORMAT")
    if forced is None or options.get(name) == forced:
        return options
    logger.info("VLLM_TEST_FORCE_LOAD_FORMAT: %s=%s", name, forced)
    return {**options, **check_options(EngineConfig, {name: forced})}


def check_options(config: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the configuration dataclass ``config`` among ``options``, each converted to its type.

    Raises:
        ConfigError: for an unknown name or a value that does not fit.
    """
    known = settings_of(config)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}", field=name)
    return {name: convert(known[name], value) for name, value in options.items()}


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """``; did you mean ...?`` where a known name is near."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build(config: type[Any], options: Mapping[str, Any]) -> Any:
    """The configuration that holds ``options``, as ``check_options`` gives them, and defaults elsewhere.

    A value may be given by its own setting and as a key of a JSON setting (``attention_backend`` and
    ``attention_config.backend``), but then it must be the same.
    """
    tree: dict[str, Any] = {}
    given_by: dict[tuple[str, ...], tuple[str, Any]] = {}

    def put(path: tuple[str, ...], name: str, value: Any) -> None:
        if path in given_by and given_by[path][1] != value:
            other, held = given_by[path]
            raise ConfigError(f"{name}={value!r} contradicts {other}={held!r}", field=name)
        given_by[path] = (name, value)
        place = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value

    def put_keys(setting: Setting, path: tuple[str, ...], name: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping) and setting.keys is not None and _is_group(setting.keys, key):
                for inner, held in value.items():
                    put((*path, key, inner), f"{name}.{key}.{inner}", held)
            else:
                put((*path, key), f"{name}.{key}", value)

    for name, setting in settings_of(config).items():
        if name not in options:
            continue
        if setting.keys is None:
            put(setting.path, name, options[name])
        else:
            put_keys(setting, setting.path, name, options[name])
    return _filled(config, tree)


def _is_group(group: type[Any], key: str) -> bool:
    return any(field.name == key and dataclasses.is_dataclass(field.type) for field in dataclasses.fields(group))


def _filled(group: type[Any], values: Mapping[str, Any]) -> Any:
    """An instance of a group; fields that are groups themselves are filled in the same way."""
    filled = {}
    for field in dataclasses.fields(group):
        if field.name in values:
            value, inner = values[field.name], field.type
            is_group = isinstance(inner, type) and dataclasses.is_dataclass(inner)
            filled[field.name] = _filled(inner, value) if is_group else value  # type: ignore[arg-type]
    return group(**filled)
