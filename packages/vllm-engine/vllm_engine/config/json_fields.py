"""Typed reading of a model's ``config.json``: every value is checked, because the file comes from strangers."""

import math
from collections.abc import Mapping
from typing import Any

from vllm_engine.errors import ConfigError

_LARGEST_INT = 2**31 - 1
REQUIRED: Any = object()
"""Default of a key that has none: its absence is an error."""


class JsonFields:
    """A JSON object read by key and type.

    A key may have older spellings (``aliases``), tried in order; ``null`` counts as absent. All errors are
    ``ConfigError`` with the key in the message and in ``field``. ``read`` collects the keys that were asked for.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "config.json") -> None:
        self.data = data
        self.where = where
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the key is there at all, ``null`` included."""
        self.read.add(name)
        return name in self.data

    def raw(self, name: str, *aliases: str) -> Any:
        """The first value that is not ``null`` among the spellings, or None."""
        self.read.update((name, *aliases))
        return next((self.data[key] for key in (name, *aliases) if self.data.get(key) is not None), None)

    def error(self, name: str, expected: str, value: Any) -> ConfigError:
        """The error of a value that is not what the key takes."""
        return ConfigError(f"{self.where}: {name}: expected {expected}, got {_short(value)}", field=name)

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
        entries = JsonFields({f"{name}[{i}]": entry for i, entry in enumerate(value)}, self.where)
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
            raise ConfigError(f"{self.where}: {name} is missing", field=name)
        return default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
