"""How much a chat template may do: every loop, call and growing text of it asks here first."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2.exceptions import SecurityError

RENDER_SECONDS = 2.0
"""How long one rendering may take."""
MAX_TEXT_CHARS = 1 << 26
"""Longest text or list that a template may put together."""
MAX_REPEATED_CHARS = 1 << 20
"""Longest text that a template may make out of a short one: by multiplication, padding or replacement."""
MAX_INTEGER_BITS = 4096
MAX_LISTS = 100_000
"""Most lists that ``batch`` and ``slice`` make, as long as they are."""

_PERCENT_WIDTH = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(?:[0-9]{5}|\*|[0-9]*\.(?:[0-9]{5}|\*))")
_BRACE_WIDTH = re.compile(r"\{[^{}:]*:[^{}]*?(?:[0-9]{5}|\{)")
"""A width or precision of five digits in a pattern, or one that comes as a value."""


class RenderTimeout(SecurityError):
    """The rendering has used up its time."""


class _Deadline(threading.local):
    """When the rendering of this thread must have ended, by ``time.monotonic()``."""

    moment = float("inf")


_deadline = _Deadline()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within this block, ``spend`` raises once ``seconds`` have passed, or those of a block around it."""
    before = _deadline.moment
    _deadline.moment = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.moment = before


def spend() -> None:
    """Called at each round of a loop and at each call. Raises ``RenderTimeout``."""
    if time.monotonic() > _deadline.moment:
        raise RenderTimeout("it takes too long")


class CountedRounds:
    """What a loop walks through, each round of which costs."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # a TypeError tells jinja that nobody knows


def check_length(length: int, most: int = MAX_TEXT_CHARS) -> None:
    """Raises ``SecurityError`` for a text or list that would be too long."""
    if length > most:
        raise SecurityError("a text or list is too long")


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Numbers are free up to a size; texts and lists only grow so far. Raises ``SecurityError``."""
    if operator == "**":
        if not (abs(left) <= 1 << 16 and abs(right) <= 64):
            raise SecurityError("a power is too large")
    elif operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(count, int) and hasattr(sequence, "__len__"):
                check_length(len(sequence) * count, MAX_REPEATED_CHARS)
        if isinstance(left, int) and isinstance(right, int):
            check_length(left.bit_length() + right.bit_length(), MAX_INTEGER_BITS)
    elif operator == "+":
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            check_length(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        check_percent_format(left)


def check_percent_format(pattern: str, *_: Any) -> None:
    """Raises ``SecurityError`` for a pattern of ``%`` that could make a long text of short values."""
    if _PERCENT_WIDTH.search(pattern):
        raise SecurityError("a width in a format is too large")


def check_brace_format(pattern: str) -> None:
    """The same for a pattern of ``format``."""
    if _BRACE_WIDTH.search(pattern):
        raise SecurityError("a width in a format is too large")


def check_method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    """The same for a method of a text. Wrong arguments are left to the method itself."""
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        width = args[0] if args else 8
        if isinstance(width, int):
            check_length(width * (owner.count("\t") + 1 if name == "expandtabs" else 1), MAX_REPEATED_CHARS)
    elif name == "replace":
        if len(args) >= 2:
            check_replacement(owner, *args)
    elif name == "join" and args:
        check_join(args[0], owner)
    elif name in ("format", "format_map"):
        check_brace_format(owner)


def check_replacement(text: Any, old: Any, new: Any, *_: Any) -> None:
    """Raises ``SecurityError`` when replacing would make a text much longer."""
    text, old, new = str(text), str(old), str(new)
    if len(new) > len(old):
        growth = text.count(old) * (len(new) - len(old))
        check_length(growth, MAX_REPEATED_CHARS if len(text) < MAX_REPEATED_CHARS else MAX_TEXT_CHARS)


def check_join(items: Any, separator: str = "", *_: Any) -> None:
    """Raises ``SecurityError`` when the joined text would be too long, as far as its parts are texts already."""
    if hasattr(items, "__len__"):
        check_length(len(items) * len(separator))
        check_length(sum(len(item) for item in items if isinstance(item, str)))


def check_padding(value: Any, width: Any = 0, *_: Any) -> None:
    """Raises ``SecurityError`` for a width that is too large; a text may stand for itself."""
    if isinstance(width, int):
        check_length(width * (str(value).count("\n") + 1), MAX_REPEATED_CHARS)


def check_count(_: Any, count: Any = 0, *__: Any) -> None:
    """Raises ``SecurityError`` for more lists than anyone needs."""
    if isinstance(count, int):
        check_length(count, MAX_LISTS)


FILTER_CHECKS: Mapping[str, Callable[..., None]] = {
    "batch": check_count,
    "center": check_padding,
    "format": check_percent_format,
    "indent": check_padding,
    "join": check_join,
    "replace": check_replacement,
    "slice": check_count,
}
"""What is asked before a filter of that name does its work, with the filter's own arguments."""
