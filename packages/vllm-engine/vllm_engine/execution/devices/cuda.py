"""An NVIDIA GPU."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from vllm_engine.config.device import DeviceKind
from vllm_engine.execution.devices.cuda_runtime import CudaRuntime, Runtime
from vllm_engine.execution.kernels_in_use import tell_kernels
from vllm_engine.execution.memory import DeviceMemory


class CudaDevice:
    """One GPU, the first that the process may see.

    Args:
        runtime: CUDA itself; another one in tests.
    """

    kind: DeviceKind = "cuda"

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime: Runtime = runtime or CudaRuntime()
        self.torch_device = self._runtime.torch_device

    def prepare(self) -> None:
        """Make the device the thread's own: what allocates without naming one must not find another."""
        self._runtime.use()

    def settle(self, layer_bytes: int) -> None:
        """Say what computes. Threads of the CPU have no part in it."""
        tell_kernels(self.torch_device, self._runtime.name())

    def memory(self, weights: int) -> DeviceMemory:
        """The device's memory as all processes share it."""
        free, total = self._runtime.free_and_total()
        return DeviceMemory(total, free, weights)

    def profile(self, weights: int, step: Callable[[], None]) -> DeviceMemory:
        """What is left once the largest step has shown how much it takes."""
        step()
        self.release_unused()
        return self.memory(weights)

    def computing(self, num_tokens: int) -> AbstractContextManager[None]:
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
        self._runtime.synchronize()
