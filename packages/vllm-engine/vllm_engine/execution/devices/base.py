"""``Device``: what a worker needs of its hardware beside tensors."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from vllm_engine.config.device import DeviceKind
from vllm_engine.execution.memory import DeviceMemory


class Device(Protocol):
    """One device. The methods are called in the order in which they stand here, by the thread that computes."""

    kind: DeviceKind
    torch_device: torch.device
    """Where weights, cache and inputs are."""

    def prepare(self) -> None:
        """Set the thread and the libraries up, before weights are read."""
        ...

    def taking(self, what: str) -> AbstractContextManager[None]:
        """While memory is taken that stays taken. Raises ``NoRoom``, with ``what`` in it, where there is too little."""
        ...

    def settle(self, layer_bytes: int, num_layers: int) -> None:
        """Get ready to compute, now that it is known how large a layer is; say in the log what computes."""
        ...

    def memory(self, weights: int) -> DeviceMemory:
        """The memory as it is now; ``weights`` is how many bytes of it the model takes."""
        ...

    def profile(self, weights: int, step: Callable[[], None], what: str, graphs: Callable[[int], int]) -> DeviceMemory:
        """The memory as steps will leave it. A device need not compute one to know.

        Args:
            weights: bytes of the model's.
            step: computes the largest one.
            what: names it.
            graphs: from bytes of that step's activations to those of the graphs that will be captured.

        Raises:
            NoRoom: when the step does not fit beside the weights.
        """
        ...

    def computing(self, num_tokens: int, num_new_requests: int) -> AbstractContextManager[None]:
        """While a step of so many tokens is computed, which begins so many requests."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was asked of the device is done."""
        ...

    def release_unused(self) -> None:
        """Give memory back that nobody uses any more."""
        ...

    def shutdown(self) -> None:
        """Undo what ``prepare`` did to the thread."""
        ...
