"""Values of settings: from keywords, YAML or the command line to the declared type, with errors that say what fits."""

import dataclasses
import difflib
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from vllm_engine.config.import_path import paths_of
from vllm_engine.config.settings import Setting, keys_of
from vllm_engine.errors import ConfigError

_MULTIPLIERS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_NUMBER = re.compile(r"(?P<digits>-?[0-9]{1,20}(\.[0-9]{1,20})?)(?P<multiplier>[kmgtKMGT]?)")
_LARGEST = 2**63
_DEPTH = 64
"""Levels of nesting that a JSON setting may have."""


def integer(text: str) -> int:
    """An integer, also with a multiplier: ``k m g t`` are powers of 1,000, ``K M G T`` powers of 1,024.

    Raises:
        ValueError: for anything else, and when the product is no whole number of 64 bits.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is not None:
        value = Decimal(match["digits"]) * _MULTIPLIERS[match["multiplier"]]
        if value == int(value) and -_LARGEST <= value < _LARGEST:
            return int(value)
    raise ValueError(f"expected a whole number such as 4096, 4k or 4K, got {text!r}")


_NUMBERS: dict[Any, Callable[[str], int | float]] = {int: integer, float: float}


def convert(setting: Setting, value: Any) -> Any:
    """``value`` as the type of ``setting``: numbers may be texts such as ``4k``, one text may stand for a list of one.

    A JSON object with known keys comes back as a dict of those that were given, each converted.

    Raises:
        ConfigError: naming the setting and what it takes.
    """
    return _convert(setting, setting.name, value)


def _convert(setting: Setting, name: str, value: Any) -> Any:
    if isinstance(value, str) and (takes_json(setting) or (value.startswith("{") and _may_be_object(setting.hint))):
        value = _from_json(name, value)
    if setting.keys is not None:
        if type(value) is int and "number_means" in setting.facts:
            value = {setting.facts["number_means"]: value}
        return _convert_keys(setting.keys, name, value)
    try:
        converted = msgspec.convert(_coerced(setting, value), setting.hint, strict=True)
        _check_plain(converted)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        if setting.facts.get("secret"):
            raise ConfigError(f"{name} must be {allowed(setting)}", field=name) from None
        reason = f" ({error})" if type(error) is ValueError else ""
        raise ConfigError(
            f"{name} must be {allowed(setting)}, got {_shown(value)}{reason}{_hint(setting, value)}", field=name
        ) from error
    return converted


def takes_keys(setting: Setting) -> bool:
    """Whether a setting is an object, whose keys may be given one by one."""
    return setting.keys is not None or get_origin(plain(setting.hint)) is dict


def takes_json(setting: Setting) -> bool:
    """Whether a text is read as JSON: that of an object, and of a list that is said to be written so."""
    return takes_keys(setting) or bool(setting.facts.get("json"))


def _may_be_object(hint: Any) -> bool:
    return any(get_origin(member) is dict for member in get_args(hint))


def _from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON ({error}): {_shown(text)}", field=name) from error


def _convert_keys(group: type[Any], name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, group):
        value = {
            field.name: held
            for field in dataclasses.fields(group)
            if (held := getattr(value, field.name)) != keys_of(group)[field.name].default
        }
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be an object with keys, got {_shown(value)}", field=name)
    known = keys_of(group)
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{name} has no key {_shown(key)}{hint}", field=name)
    return {key: _convert(known[key], f"{name}.{key}", held) for key, held in value.items()}


def _coerced(setting: Setting, value: Any) -> Any:
    """What a person may write for a type: ``4k`` for an integer, a path for a text, one item for a list."""
    hint = plain(setting.hint)
    origin = get_origin(hint)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if setting.facts.get("classes"):
        value = paths_of(setting.name, value)
    if isinstance(value, str):
        if setting.facts.get("auto") and value.strip() == "auto":
            return -1
        if value == "None" and NoneType in get_args(setting.hint) and origin is Literal:
            return None
        if hint in _NUMBERS:
            return _number(hint, value)
        if origin is Literal and isinstance(get_args(hint)[0], int):
            return _number(int, value)
        if origin is list:
            value = [value]
    if isinstance(value, (set, frozenset)) and origin is list:
        value = sorted(value, key=str)
    if origin is list and isinstance(value, (list, tuple)):
        kind = plain(get_args(hint)[0])
        if setting.facts.get("commas") or kind in _NUMBERS:
            value = [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
        return [_number(kind, item) if kind in _NUMBERS and isinstance(item, str) else item for item in value]
    return value


def _number(kind: Any, text: str) -> Any:
    """The number that a text stands for; the text itself, which the type then refuses, where it is none."""
    try:
        return _NUMBERS[kind](text)
    except ValueError:
        return text


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse what JSON cannot say: it could be neither shown nor sent to the engine process."""
    if depth > _DEPTH:
        raise ValueError(f"nested more than {_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text")
            _check_plain(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    elif isinstance(value, str):
        value.encode()  # UnicodeEncodeError is a ValueError
        if "\0" in value:
            raise ValueError("it holds a zero byte")
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError("more than 64 bits")
    elif not isinstance(value, (bool, int, float, NoneType)):
        raise ValueError(f"{type(value).__name__} is not a JSON value")


def plain(hint: Any) -> Any:
    """The type without ``Annotated`` and without ``| None``; the first member of any other union."""
    if get_origin(hint) is Annotated:
        return plain(get_args(hint)[0])
    if get_origin(hint) in (UnionType, Union):
        return plain(next(item for item in get_args(hint) if item is not NoneType))
    return hint


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``, also as items of a list; nothing for other types."""
    hint = plain(hint)
    if get_origin(hint) is list:
        return choices_of(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) is Literal else ()


def allowed(setting: Setting) -> str:
    """What a setting takes, in words: ``an integer of at least 1``."""
    words = _words(setting.hint)
    return words + " or auto" if setting.facts.get("auto") else words


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [
            f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"
            for meta in arguments[1:]
            for word, value in (
                ("at least", meta.ge),
                ("more than", meta.gt),
                ("at most", meta.le),
                ("less than", meta.lt),
            )
            if value is not None
        ]
        described = next((meta.description for meta in arguments[1:] if meta.description), None)
        return described or f"{_words(arguments[0])} of {' and '.join(bounds)}"
    if origin in (Union, UnionType):
        return " or ".join(_words(member) for member in arguments if member is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_words(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "an object with keys")


def _hint(setting: Setting, value: Any) -> str:
    choices = [str(choice) for choice in choices_of(setting.hint)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, (Mapping, list)) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
