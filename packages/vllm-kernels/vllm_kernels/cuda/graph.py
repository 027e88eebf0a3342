"""CUDA graphs as torch has them. No decisions here: ``vllm_kernels.graphs`` makes them, and its tests fake this."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

_of_thread = threading.local()
_broken: list[torch.cuda.CUDAGraph] = []
"""Graphs that failed, which torch's allocator of pinned memory goes on asking about: they must not go away."""


class CudaRecorder:
    """Captures what is launched between ``begin`` and ``end``, with memory that all its graphs share."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = _side_stream(self._index)
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Launch on a stream of its own: the default one cannot be captured."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # graphs take memory from the device only, not from what torch keeps for others
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize(self._device)

    def begin(self) -> None:
        """Capture from here on."""
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may be about their own work on the device, which would end a capture that is everybody's.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> Callable[[], None]:
        """What replays all that was captured."""
        graph = self._graph
        if graph is None:
            raise RuntimeError("nothing is being captured")
        graph.capture_end()
        self._graph = None
        replay: Callable[[], None] = graph.replay
        return replay

    def abandon(self) -> None:
        """Stop after a failure. Where the failure ended the capture, torch raises before it tells its allocator."""
        graph, self._graph = self._graph, None
        if graph is None:
            return
        try:
            graph.capture_end()
        except RuntimeError:
            pool, self._pool = self._pool, torch.cuda.graph_pool_handle()
            with suppress(RuntimeError):  # it had not begun, or had ended
                torch._C._cuda_endAllocateToPool(self._index, pool)
                torch._C._cuda_releasePool(self._index, pool)
                _broken.append(graph)

    def alias(self, tensor: Tensor) -> Tensor:
        """The same memory without a claim to it: what a later piece or graph allocates may be there again."""
        if not tensor.numel():
            return tensor
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        memory = torch.as_tensor(_Memory(tensor.data_ptr(), span * tensor.itemsize), device=self._device)
        return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def memory_in_use(self) -> int:
        """Bytes of the device that are taken, by whomever: a graph's own memory is in no statistics of torch."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


def _side_stream(index: int) -> torch.cuda.Stream:
    """The thread's own, one for all its graphs: cuBLAS keeps up to 32 MiB for each stream that it was ever used on."""
    streams: dict[int, torch.cuda.Stream] = _of_thread.__dict__.setdefault("streams", {})
    if index not in streams:
        streams[index] = torch.cuda.Stream(index)
    return streams[index]


class _Memory:
    """Bytes of the device, described as ``torch.as_tensor`` reads it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }
