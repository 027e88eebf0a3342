"""Random numbers without state: a hash of the request's seed and the output position.

So a request draws the same numbers alone or in any batch, and again after a preemption, and there is no generator
to keep, copy or restore.
"""

import numpy as np
from numpy.typing import NDArray

# SplitMix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the
# finaliser is variant 13 of D. Stafford's, as in S. Vigna's public domain splitmix64.c.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_SHIFT_TO_53_BITS = np.uint64(11)


def seed_streams(seeds: list[int]) -> NDArray[np.uint64]:
    """Start of each seed's stream; any Python integers, taken modulo 2**64.

    The seed is mixed first: unmixed, seeds that differ by a multiple of the step would share numbers.
    """
    return _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64) + _GAMMA)


def uniforms_at(streams: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Number of each stream at a position: uniform in [0, 1), a multiple of 2**-53. Shapes as given."""
    bits = _mix(streams + (positions + np.uint64(1)) * _GAMMA) >> _SHIFT_TO_53_BITS
    return bits.astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFT_1)) * _MULTIPLIER_1
    z = (z ^ (z >> _SHIFT_2)) * _MULTIPLIER_2
    return z ^ (z >> _SHIFT_3)
