"""How a KV cache stores numbers, in plain Python: what sizes a cache needs to know before any tensor is made."""

from typing import Literal

CacheFormat = Literal[
    "float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head"
]
"""Formats of entries.

Floating point types round to nearest even; the 8 bit ones also saturate at their largest number, and keep NaN. The
formats with a scale for each token and head (``int8_per_token_head``, and ``fp8_per_token_head`` in e4m3) store ``x /
scale``, rounded to nearest even, where ``scale`` is the largest magnitude of the head's entries over 127 or 448, and 1
where all are zero. A head that holds a NaN or an infinity has the scale NaN, and reads as NaN.
"""

ENTRY_BYTES: dict[CacheFormat, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "int8_per_token_head": 1,
    "fp8_per_token_head": 1,
}

SCALED: dict[CacheFormat, float] = {"int8_per_token_head": 127.0, "fp8_per_token_head": 448.0}
"""Formats with a scale for each token and head: their largest stored number."""

SCALE_BYTES = 4


def head_bytes(format: CacheFormat, head_dim: int) -> int:
    """Bytes that one head of one token takes for its key, and as many for its value."""
    return head_dim * ENTRY_BYTES[format] + (SCALE_BYTES if format in SCALED else 0)
