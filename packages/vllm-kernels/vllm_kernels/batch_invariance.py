"""Whether a row's result must be the same bits whatever else is in the batch. Faster orders of sums are off then.

Most operations are so by design. One that is faster with an order of accumulation that depends on the number of rows,
the threads or the chunks asks ``enabled`` first, and hands the answer to C++ as an argument.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from vllm_kernels.variables import yes_or_no

VARIABLE = "VLLM_BATCH_INVARIANT"

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
    return yes_or_no(VARIABLE, default=False)
