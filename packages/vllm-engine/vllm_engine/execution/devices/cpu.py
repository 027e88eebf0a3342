"""The CPU: main memory, and the cores that the process may use."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from vllm_engine import envs
from vllm_engine.config.device import DeviceKind
from vllm_engine.execution.cores import usable_nodes
from vllm_engine.execution.heap import keep_freed_memory
from vllm_engine.execution.kernels_in_use import tell_kernels
from vllm_engine.execution.memory import DeviceMemory, main_memory
from vllm_engine.execution.step_threads import StepThreads
from vllm_engine.execution.thread_binding import ThreadBinding
from vllm_engine.execution.thread_plan import BIND, plan_for_this_machine
from vllm_engine.execution.threads import num_threads


class CpuDevice:
    """Plans the threads, puts them where they belong, and knows the memory near them.

    Raises:
        ConfigError: naming the variable that asks for cores which cannot be used.
    """

    kind: DeviceKind = "cpu"
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        keep_freed_memory()
        self._threads_asked = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None
        self._threads = plan_for_this_machine(self._threads_asked)
        self._binding = ThreadBinding(self._threads)

    def prepare(self) -> None:
        """Bind the thread, so that the memory of what it reads is near its cores."""
        self._binding.bind_caller()

    def taking(self, what: str) -> AbstractContextManager[None]:
        """Nothing to look out for: the system finds memory when it is written."""
        return nullcontext()

    def settle(self, layer_bytes: int, num_layers: int) -> None:
        """Decide how many threads compute, and put each where it belongs."""
        most = count = self._threads.count
        if self._threads_asked is None and not self._threads.one_each:
            count = num_threads(layer_bytes, count)
        self._step_threads = StepThreads(count, most, layer_bytes, num_layers, apart=envs.get(BIND) != "nobind")
        torch.set_num_threads(count)
        self._binding.bind_team(count)
        tell_kernels(self.torch_device, f"{'1 thread' if count == 1 else f'{count} threads'} {self._threads.words}")

    def memory(self, weights: int) -> DeviceMemory:
        """The memory of the NUMA nodes where the worker's belongs."""
        nodes = usable_nodes(self._threads.cores) if self._threads.cores and self._threads.memory_nodes else None
        return main_memory(weights=weights, nodes=nodes)

    def profile(self, weights: int, step: Callable[[], None], what: str, graphs: Callable[[int], int]) -> DeviceMemory:
        """As ``memory``: half of what is free stays free, which is more than any step takes."""
        return self.memory(weights)

    def computing(self, num_tokens: int, num_new_requests: int) -> AbstractContextManager[None]:
        """All threads for long steps."""
        return self._step_threads.computing(num_tokens, num_new_requests)

    def synchronize(self) -> None:
        """Nothing to wait for: an operation is done when it returns."""

    def release_unused(self) -> None:
        """Nothing: memory that is let go of is there for the next who asks."""

    def shutdown(self) -> None:
        """Give the threads, one of which may be its user's own, the cores back that they had."""
        self._binding.undo()
