"""``EngineArgs``: flat keyword arguments in, a checked ``EngineConfig`` out."""

import dataclasses
import difflib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from vllm_engine.config.groups import EngineConfig
from vllm_engine.errors import ConfigError


def option_fields() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Every setting by name: the group of ``EngineConfig`` that holds it, and its field."""
    return {
        field.name: (group.name, field)
        for group in dataclasses.fields(EngineConfig)
        for field in dataclasses.fields(group.type)  # type: ignore[arg-type]
    }


class EngineArgs:
    """The settings of an engine as flat keywords: ``EngineArgs(model="demo", max_num_seqs=8)``.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value of the wrong type or range.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        if model is not None:
            options["model"] = model
        known = option_fields()
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"unknown setting {name!r}{hint}", field=name)
        self.options = options
        self._config = _check(options)

    def create_config(self) -> EngineConfig:
        """The checked, immutable configuration."""
        return self._config


def _check(options: dict[str, Any]) -> EngineConfig:
    """Convert value by value, so that a message names the setting at fault and what it takes."""
    groups: dict[str, dict[str, Any]] = {}
    for name, (group, field) in option_fields().items():
        if name not in options:
            continue
        try:
            groups.setdefault(group, {})[name] = msgspec.convert(options[name], field.type, strict=True)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name} must be {_allowed(field.type)}, got {options[name]!r}", field=name) from error
    return EngineConfig(
        **{group.name: group.type(**groups.get(group.name, {})) for group in dataclasses.fields(EngineConfig)}  # type: ignore[operator]
    )


def _allowed(annotation: Any) -> str:
    """What a field's type takes, in words: ``an integer of at least 1 or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [
            f"{word} {value}"
            for meta in arguments[1:]
            for word, value in (("at least", meta.ge), ("at most", meta.le))
            if value is not None
        ]
        return f"{_allowed(arguments[0])} of {' and '.join(bounds)}"
    if origin in (Union, UnionType):
        return " or ".join(_allowed(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_allowed(arguments[0])}"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(annotation, "an object")
