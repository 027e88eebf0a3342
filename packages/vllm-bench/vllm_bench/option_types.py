"""``type=`` functions of options: each raises ``ArgumentTypeError`` with what it wanted."""

import json
import math
from argparse import ArgumentTypeError
from typing import Any

from vllm_cli.commands.connection import positive_integer


def positive_number(text: str) -> float:
    """A finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def number_from_0(text: str) -> float:
    """A finite number, 0 or above."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def rate(text: str) -> float:
    """A number above 0, or ``inf``."""
    number = _number(text)
    if not number > 0:
        raise ArgumentTypeError(f"{text!r} is neither a number above 0 nor inf")
    return number


def count(text: str) -> int:
    """A whole number from 0 on."""
    return 0 if text == "0" else positive_integer(text)


def percents(text: str) -> list[float]:
    """``50,90,99``: percentages from 0 to 100."""
    numbers = [_number(part) for part in text.split(",")]
    if not all(0 <= number <= 100 for number in numbers):
        raise ArgumentTypeError(f"{text!r} is not a list of percentages such as 50,90,99")
    return numbers


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def key_and_value(text: str) -> tuple[str, str]:
    """``KEY=VALUE``; the value may hold more of these signs, and may be empty."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def some_of(names: list[str], text: str) -> list[str]:
    """``a,b``: some of ``names``."""
    chosen = text.split(",")
    for name in chosen:
        if name not in names:
            raise ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
    return chosen


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
