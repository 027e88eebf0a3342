"""Whether a row's result must be the same bits whatever else is in the batch. Faster orders of sums are off then.

Most operations are so by design. One that is faster with an order of accumulation that depends on the number of rows,
the threads or the chunks asks ``enabled`` first, and hands the answer to C++ as an argument.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

VARIABLE = "VLLM_BATCH_INVARIANT"
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

_set: bool | None = None


def enabled() -> bool:
    """What ``use_batch_invariance`` says, else the environment variable ``VLLM_BATCH_INVARIANT`` (read once), else no.

    Raises ``ValueError`` for a value of the variable that is neither yes nor no.
    """
    return _from_environment() if _set is None else _set


@contextmanager
def use_batch_invariance(on: bool) -> Iterator[None]:
    """Decide it for all threads inside the ``with`` block."""
    global _set
    before, _set = _set, on
    try:
        yield
    finally:
        _set = before


@cache
def _from_environment() -> bool:
    text = os.environ.get(VARIABLE, "")
    word = text.strip().lower()
    if word not in _YES + _NO:
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {text!r}")
    return word in _YES
