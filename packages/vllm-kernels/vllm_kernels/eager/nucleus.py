"""The nucleus of a row (top_p) without sorting the row.

The bits of a positive float order as the float does. Counting the probability per value of the upper bits (exponent and
five bits of mantissa) tells in which such bucket the nucleus ends; only that bucket is put in order. The cost is
a few passes over the row however flat the distribution is.
"""

import numpy as np
import torch
from numpy.typing import NDArray

_LOWER_BITS = 18


def keep_nucleus(weights: torch.Tensor, top_p: float) -> None:
    """Set to 0, in place, all but the fewest largest weights that add up to ``top_p`` of the sum.

    ``weights`` ``[num_columns]`` fp32, contiguous, at least 0 and not all 0. Of equals, lower columns are kept first.
    """
    values: NDArray[np.float32] = weights.numpy()
    buckets = values.view(np.int32) >> _LOWER_BITS
    mass_from = np.bincount(buckets, weights=values)[::-1].cumsum()[::-1]  # of a bucket and all above it
    target = top_p * mass_from[0]
    last = int(np.count_nonzero(mass_from >= target)) - 1
    mass_above = mass_from[last + 1] if last + 1 < len(mass_from) else 0.0
    members = np.flatnonzero(buckets == last)
    members = members[np.argsort(-values[members], kind="stable")]
    running = mass_above + np.cumsum(values[members], dtype=np.float64)
    values[members[np.searchsorted(running, target) + 1 :]] = 0
    if last > 0:
        largest_below = np.array((last << _LOWER_BITS) - 1, dtype=np.int32).view(np.float32)
        torch.threshold_(weights, float(largest_below), 0.0)
