"""Environment variables: one table with name, type, default and meaning; read when asked for, never at import."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One variable. ``parse`` turns its text into a value and raises ``ValueError`` for text that it cannot read."""

    parse: Callable[[str], Any]
    default: Any
    meaning: str


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected 0 or 1")


def _log_level(text: str) -> str:
    level = text.strip().upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError("expected DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return level


def _positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("expected a number above 0")
    return number


VARIABLES: dict[str, EnvVar] = {
    "VLLM_LOGGING_LEVEL": EnvVar(_log_level, "INFO", "lowest level that the log shows"),
    "VLLM_CPU_KVCACHE_SPACE": EnvVar(
        _positive_number, None, "GiB for the KV cache on a CPU; unset: a share of what is free"
    ),
    "VLLM_CHECK_INVARIANTS": EnvVar(_boolean, False, "check the KV block accounting after every step (for tests)"),
}


def get(name: str) -> Any:
    """Value of a variable of the table, or its default when it is unset.

    Raises ``ConfigError`` naming the variable when its text cannot be read.
    """
    variable = VARIABLES[name]
    text = os.environ.get(name)
    if text is None:
        return variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ConfigError(f"environment variable {name}={text!r} is not valid: {error}", field=name) from error
