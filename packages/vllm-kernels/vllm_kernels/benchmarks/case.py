"""One line of the table: an operation on one shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Bound = Literal["memory", "matrix"]


@dataclass(frozen=True)
class Case:
    """An operation on one shape, its truth, and what it must move and compute.

    Args:
        name: of the operation; several shapes may have the same.
        shape: in words.
        run: the operation by our kernels, on tensors made before.
        checked: what of its result is compared: ``run``'s result -> rows.
        truth: the same rows in float64.
        tolerance: most of ``|rows - truth| / |truth|``.
        moved: bytes of device memory, each input read once and each output written once.
        computed: floating point (or integer) operations of matrix products.
        bound: which of the two ceilings is the nearer one.
        peer, peer_name: the same by torch, on tensors of the same values.
        goal: least part of the ceiling.
        peer_goal: least ratio of the peer's time to ours.
    """

    name: str
    shape: str
    run: Callable[[], torch.Tensor]
    checked: Callable[[torch.Tensor], torch.Tensor]
    truth: Callable[[], torch.Tensor]
    tolerance: float
    moved: int
    computed: int = 0
    bound: Bound = "memory"
    peer: Callable[[], torch.Tensor] | None = None
    peer_name: str = ""
    goal: float | None = None
    peer_goal: float | None = None


@dataclass(frozen=True)
class Sizes:
    """How large the shapes are: those of real models, or tiny ones that the interpreter can run."""

    tiny: bool

    def __call__(self, real: int, tiny: int) -> int:
        """``real``, or ``tiny`` in its place."""
        return tiny if self.tiny else real


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """``|result - truth| / |truth|``; infinity where the result is not finite."""
    wide = result.double()
    if not wide.isfinite().all():
        return float("inf")
    return float((wide - truth).norm() / truth.norm().clamp(min=1e-300))
