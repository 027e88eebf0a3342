"""For tests that hold the answers of two runs against each other.

A token's sums may be added up in an order that depends on how many tokens share its step, and a prompt that the prefix
cache holds is computed in steps of fewer: on processors with AMX the last bits differ, and sooner or later a token.
Who claims that two runs agree asks for batch invariance.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_engine.config.device import resolve_device
from vllm_kernels.batch_invariance import VARIABLE, use_batch_invariance
from vllm_kernels.describe import kernels_of


def same_bits() -> dict[str, str]:
    """Environment of a server whose answers depend on the request alone; empty where the kernels cannot promise it."""
    promised = kernels_of(torch.device(resolve_device("auto"))).startswith("native")
    return {VARIABLE: "1"} if promised else {}


@contextmanager
def same_bits_here() -> Iterator[None]:
    """The same for engines of this process."""
    with use_batch_invariance(bool(same_bits())):
        yield
