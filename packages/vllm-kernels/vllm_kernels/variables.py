"""Environment variables of this wheel that are yes or no."""

import os

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def yes_or_no(variable: str, default: bool) -> bool:
    """What an environment variable says now; ``default`` where it is empty or not set.

    Raises ``ValueError`` for a value that is neither.
    """
    text = os.environ.get(variable, "")
    word = text.strip().lower()
    if word not in ("", *_YES, *_NO):
        raise ValueError(f"{variable} must be 0 or 1, got {text!r}")
    return word in _YES if word else default
