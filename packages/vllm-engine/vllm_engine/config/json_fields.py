"""Typed reading of a model's ``config.json``: every value is checked, because the file comes from strangers."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from vllm_engine.errors import ConfigError

_LARGEST_INT = 2**31 - 1
OVERRIDES = "hf_overrides"
REQUIRED: Any = object()
"""Default of a key that has none: its absence is an error."""


class JsonFields:
    """A JSON object read by key and type.

    A key may have older spellings (``aliases``), tried in order; ``null`` counts as absent. All errors are
    ``ConfigError`` with the key in the message and in ``field``. ``read`` collects the keys that were asked for.

    ``overridden`` are the keys whose values come from ``hf_overrides``: such a spelling wins over the others, and is
    blamed for what it holds.
    """

    def __init__(
        self, data: Mapping[str, Any], where: str = "config.json", overridden: Collection[str] = frozenset()
    ) -> None:
        self.data = data
        self.where = where
        self.overridden = overridden
        self.read: set[str] = set()
        self._spelled: dict[str, str] = {}

    def has(self, name: str) -> bool:
        """Whether the key is there at all, ``null`` included."""
        self.read.add(name)
        return name in self.data

    def raw(self, name: str, *aliases: str) -> Any:
        """The first value that is not ``null`` among the spellings, or None."""
        self.read.update((name, *aliases))
        given = [key for key in (name, *aliases) if self.data.get(key) is not None]
        if not given:
            return None
        self._spelled[name] = next((key for key in given if key in self.overridden), given[0])
        return self.data[self._spelled[name]]

    def error(self, name: str, expected: str, value: Any) -> ConfigError:
        """The error of a value that is not what the key takes."""
        return self.refusal(f"{name}: expected {expected}, got {_short(value)}", name)

    def refusal(self, message: str, *names: str) -> ConfigError:
        """The error of values that will not do: it says where they come from. ``names``: of their keys."""
        where = self.where_of(*names)
        return ConfigError(f"{where}: {message}", field=OVERRIDES if where.startswith(OVERRIDES) else names[0])

    def where_of(self, *names: str) -> str:
        """The name of this object, or ``hf_overrides`` when one of the values of these names was given there."""
        given_there = any(self._spelled.get(name, name) in self.overridden for name in names)
        return OVERRIDES if given_there else self.where

    def integer(self, name: str, *aliases: str, default: Any = REQUIRED, at_most: int = _LARGEST_INT) -> int:
        """A positive whole number of at most ``at_most``."""
        value = self._value(name, aliases, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= at_most:
            raise self.error(name, f"a whole number from 1 to {at_most}", value)
        return value

    def optional_integer(self, name: str, *aliases: str) -> int | None:
        """A positive whole number, or None when the key is absent or ``null``."""
        return None if self.raw(name, *aliases) is None else self.integer(name, *aliases)

    def number(self, name: str, *aliases: str, default: Any = REQUIRED) -> float:
        """A finite number above zero."""
        value = self._value(name, aliases, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(name, "a number above 0", value)
        return float(value)

    def optional_number(self, name: str, *aliases: str) -> float | None:
        """A finite number above zero, or None when the key is absent or ``null``."""
        return None if self.raw(name, *aliases) is None else self.number(name, *aliases)

    def boolean(self, name: str, *aliases: str, default: Any = REQUIRED) -> bool:
        """``true`` or ``false``."""
        value = self._value(name, aliases, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def text(self, name: str, *aliases: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._value(name, aliases, default)
        if not isinstance(value, str):
            raise self.error(name, "a string", value)
        return value

    def numbers(self, name: str, *, length: int) -> tuple[float, ...]:
        """A list of exactly ``length`` finite numbers above zero."""
        value = self._value(name, (), REQUIRED)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(name, f"a list of {length} numbers", value)
        entries = JsonFields({f"{name}[{i}]": entry for i, entry in enumerate(value)}, self.where_of(name))
        return tuple(entries.number(key) for key in entries.data)

    def object(self, name: str, *aliases: str) -> Mapping[str, Any] | None:
        """A JSON object, or None when the key is absent or ``null``."""
        value = self.raw(name, *aliases)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "an object", value)
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent. Negative ids, an old way to say "none", are left out."""
        value = self.raw(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) or not isinstance(entry, int) for entry in ids):
            raise self.error(name, "a token id or a list of token ids", value)
        return tuple(entry for entry in ids if entry >= 0)

    def _value(self, name: str, aliases: tuple[str, ...], default: Any) -> Any:
        value = self.raw(name, *aliases)
        if value is not None:
            return value
        if default is REQUIRED:
            raise self.refusal(f"{name} is missing", name)
        return default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
