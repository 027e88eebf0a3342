"""Upper bounds of the histograms: engine and server count by the same ones.

They hold every bound that dashboards made for vLLM know, and finer ones below, since a small model on a CPU is done
with a token in a millisecond.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

BucketFamily = Literal[
    "request_latency",
    "time_to_first_token",
    "inter_token_latency",
    "iteration_tokens",
    "request_params_n",
    "request_num_preemptions",
    "request_tokens",
    "kv_cache_residency",
]
"""Histograms of one family have the same bounds."""
FAMILIES: tuple[BucketFamily, ...] = get_args(BucketFamily)

_BOUNDS: dict[BucketFamily, tuple[float, ...]] = {
    "request_latency": (
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
        *(120, 240, 480, 960, 1920, 7680),
    ),
    "time_to_first_token": (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5),
        *(10, 20, 40, 80, 160, 640, 2560),
    ),
    "inter_token_latency": (
        *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
    ),
    "iteration_tokens": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (0, 1, 2, 3, 4, 5, 10, 20),
    "kv_cache_residency": (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
        *(1200, 1800),
    ),
}

Buckets = Mapping[BucketFamily, Sequence[float]]


def bucket_bounds(custom: Mapping[str, Sequence[float]] | None = None, *, max_model_len: int | None = None) -> Buckets:
    """The bounds of each family.

    Args:
        custom: those that an operator has chosen instead, by family.
        max_model_len: most tokens of a request, up to which ``request_tokens`` goes; None: a million.
    """
    ladder = tuple(one_two_five(1, 1_000_000 if max_model_len is None else max_model_len))
    bounds: dict[BucketFamily, tuple[float, ...]] = {**_BOUNDS, "request_tokens": ladder}
    for family in FAMILIES:
        if custom and family in custom:
            bounds[family] = tuple(custom[family])
    return bounds


def one_two_five(low: float, high: float) -> list[float]:
    """The ladder ..., 1, 2, 5, 10, 20, 50, ... between two of its own steps."""
    steps = [float(f"{digit}e{exponent}") for exponent in range(-6, 10) for digit in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]
