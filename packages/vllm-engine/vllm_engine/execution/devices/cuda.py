"""An NVIDIA GPU."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from traceback import clear_frames

import torch

from vllm_engine.config.device import DeviceKind
from vllm_engine.execution.devices.cuda_runtime import Runtime
from vllm_engine.execution.kernels_in_use import tell_kernels
from vllm_engine.execution.memory import DeviceMemory, MemoryUse, NoRoom, amount
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

LATER = 128 * 2**20
"""Bytes for kernels that the largest step does not use, and that are loaded when another step first does."""


class CudaDevice:
    """One GPU, the first that the process may see.

    Args:
        runtime: CUDA itself, or a stand-in.
    """

    kind: DeviceKind = "cuda"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.torch_device = runtime.torch_device
        self._is_prepared = False
        self._others = self._reserved_before = 0

    def prepare(self) -> None:
        """Make the device the thread's own: what allocates without naming one must not find another.

        What is in use before this engine takes anything belongs to others: mostly other processes. What an earlier
        engine of this process left in torch's cache does not.
        """
        if self._runtime.reserved():
            self.release_unused()
        free = self._runtime.free_without_context()
        self._reserved_before = self._runtime.reserved()
        self._runtime.use()
        now, total = self._runtime.free_and_total()
        self._is_prepared = True
        self._others = max(0, total - (now if free is None else free))

    @contextmanager
    def taking(self, what: str) -> Iterator[None]:
        """Say what is in the way, where memory does not suffice."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            free, total = self._runtime.free_and_total()
            raise NoRoom(
                f"the GPU's memory has no room for {what}: {amount(free)} of {amount(total)} are free, this engine has "
                f"{amount(self._reserved())} and CUDA itself {amount(self._non_torch())} already, and other processes "
                f"have {amount(self._others)}; quantization makes the weights smaller, or another process must give way"
            ) from error

    def settle(self, layer_bytes: int, num_layers: int) -> None:
        """Say what computes. Threads of the CPU have no part in it."""
        tell_kernels(self.torch_device, self._runtime.name())

    def memory(self, weights: int) -> DeviceMemory:
        """The device's memory as all processes share it."""
        free, total = self._runtime.free_and_total()
        return DeviceMemory(total, free, weights)

    def profile(self, weights: int, step: Callable[[], None], what: str, graphs: Callable[[int], int]) -> DeviceMemory:
        """Compute the largest step, and see what it takes.

        Memory counts as torch reserves it, in whole segments: that is what must be free. The step's own is the most
        that was reserved beyond what stays, and what is in use beyond torch's and the other processes' is CUDA's.
        """
        self.release_unused()
        weights = self._reserved()
        self._runtime.forget_peak()
        started = time.perf_counter()
        too_large = self._too_large(step, what, weights)
        if too_large is not None:
            self.release_unused()
            raise too_large
        activations = self._runtime.peak_reserved() - self._reserved_before - weights
        non_torch = self._non_torch()
        seconds = time.perf_counter() - started
        logger.info("computed %s in %.1f s, which compiled what it needs", what, seconds)
        self._runtime.empty_cache()
        free, total = self._runtime.free_and_total()
        use = MemoryUse(weights, activations, graphs(activations), non_torch, self._others)
        return DeviceMemory(total, free, weights, use)

    def _reserved(self) -> int:
        """What torch holds of the device for this engine."""
        return self._runtime.reserved() - self._reserved_before

    def _non_torch(self) -> int:
        """What neither torch nor anybody else has, and what will be added to that."""
        free, total = self._runtime.free_and_total()
        return max(0, total - free - self._others - self._reserved()) + LATER

    def _too_large(self, step: Callable[[], None], what: str, weights: int) -> NoRoom | None:
        """Compute the step; the error, where it does not fit. It is not raised here: an exception holds the tensors of
        the frames that it went through.
        """
        try:
            step()
            self._runtime.synchronize()
        except torch.OutOfMemoryError as error:
            _, total = self._runtime.free_and_total()
            held = self._runtime.peak_reserved() - self._reserved_before
            clear_frames(error.__traceback__)
            return NoRoom(
                f"the GPU's memory has no room for {what}: weights {amount(weights)} + activations of more than "
                f"{amount(held - weights)} + CUDA itself {amount(self._non_torch())} + other processes "
                f"{amount(self._others)} do not fit into {amount(total)}",
                field="max_num_batched_tokens",
            )
        return None

    def computing(self, num_tokens: int, num_new_requests: int) -> AbstractContextManager[None]:
        """Nothing to set for a step."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        self._runtime.synchronize()

    def release_unused(self) -> None:
        """Give blocks without tensors back to the device, so that other processes find them."""
        gc.collect()
        self._runtime.empty_cache()

    def shutdown(self) -> None:
        """Leave nothing under way: what comes next on the device may be another engine's."""
        if not self._is_prepared:
            return
        try:
            self._runtime.synchronize()
        except RuntimeError as error:  # the engine ends because of it, or for another reason; either way it ends
            logger.warning("the GPU's work ended with an error: %s", error)
