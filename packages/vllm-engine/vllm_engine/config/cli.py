"""Command-line flags made from the fields of configuration groups; nothing about a flag is written twice.

A field ``max_num_seqs`` becomes ``--max-num-seqs``. The type of the field decides how its text is read:

=====================  ==============================================================
``bool``               ``--name`` and ``--no-name``
``int``                a number, also as ``1k`` (1,000), ``1K`` (1,024), ``25.6k``, ``2M``
``float``, ``str``     as they stand
``Literal[...]``       one of its values
``list[...]``          one or more words
``dict[...]``          a JSON object
=====================  ==============================================================

Ranges are checked where all settings are checked (``EngineArgs``), not here.
"""

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from typing import Any

_MULTIPLIERS = {
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


def add_group_arguments(parser: argparse.ArgumentParser, group: type[Any]) -> None:
    """Add one flag for each field of the configuration dataclass ``group``, under a heading with the group's name.

    A flag that is not given leaves no trace in the namespace, so that defaults stay where they are declared.
    """
    summary = (group.__doc__ or "").strip().splitlines()[0]
    section = parser.add_argument_group(group.__name__, summary)
    hints = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        section.add_argument(
            flag_of(field),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=_help(field),
            **_reader(hints[field.name], field.metadata.get("metavar")),
        )


def values_from_namespace(namespace: argparse.Namespace, *groups: type[Any]) -> dict[str, Any]:
    """The settings of ``groups`` that were given on the command line, by field name."""
    given = vars(namespace)
    return {
        field.name: given[field.name] for group in groups for field in dataclasses.fields(group) if field.name in given
    }


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The flag of a field: its own spelling when it declares one, else its name with dashes."""
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The declared default of a field, ``dataclasses.MISSING`` when it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def integer(text: str) -> int:
    """An integer, also with a multiplier: ``k m g t`` are powers of 1,000, ``K M G T`` powers of 1,024.

    Raises ``argparse.ArgumentTypeError`` for anything else, and when the product is no whole number.
    """
    match = _NUMBER.fullmatch(text)
    if match is not None:
        value = Decimal(match["digits"]) * _MULTIPLIERS.get(match["multiplier"], 1)
        if value == int(value):
            return int(value)
    raise argparse.ArgumentTypeError(f"expected a whole number such as 4096, 4k or 4K, got {text!r}")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ``argparse.ArgumentTypeError`` with the place of the mistake."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"key\": 1}}', got {text!r}")
    return value


def _reader(hint: Any, metavar: str | None) -> dict[str, Any]:
    """What ``add_argument`` needs to know about a type."""
    hint = _plain(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"choices": list(arguments), "type": type(arguments[0])}
    if origin is list:
        return {"nargs": "+", "type": _scalar(arguments[0]), "metavar": metavar or "VALUE"}
    if origin is dict:
        return {"type": json_object, "metavar": metavar or "JSON"}
    reader = _scalar(hint)
    return {"type": reader, "metavar": metavar or reader.__name__.upper().replace("INTEGER", "INT")}


def _scalar(hint: Any) -> Callable[[str], Any]:
    readers: dict[Any, Callable[[str], Any]] = {int: integer, float: float, str: str}
    reader = readers.get(_plain(hint))
    if reader is None:
        raise TypeError(f"no command-line reader for a field of type {hint}")
    return reader


def _plain(hint: Any) -> Any:
    """The type without ``Annotated`` and without ``| None``."""
    if typing.get_origin(hint) is typing.Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (only,) = (item for item in typing.get_args(hint) if item is not type(None))
        return _plain(only)
    return hint


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    default = default_of(field)
    if default in (None, dataclasses.MISSING) or default == {} or default == []:
        return text.replace("%", "%%")
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    return f"{text} (default: {shown})".replace("%", "%%")
