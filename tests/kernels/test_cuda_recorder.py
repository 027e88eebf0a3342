"""What ``CudaRecorder`` asks of torch, held against the rules that torch has for it. The GPU is made up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from vllm_kernels.cuda import graph as cuda_graph
from vllm_kernels.graphs import GraphPool, NotCapturable

DEFAULT = "the default stream"


class TorchCuda:
    """Streams, captures and the allocator's book on them, as ``CUDAGraph.cpp`` and the caching allocators keep it."""

    def __init__(self) -> None:
        self.stream = DEFAULT
        self.streams = self.pools = 0
        self.underway: list[Any] = []
        """Pools that the device's memory is taken from while something is captured."""
        self.pinned_underway: list[Any] = []
        """The same of pinned memory, which nothing but the end of a capture takes back."""
        self.graphs_of: dict[Any, int] = {}
        self.capturing = self.is_spoilt = False

    def new_stream(self) -> str:
        self.streams += 1
        return f"stream {self.streams}"

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def synchronize(self, device: torch.device) -> None:
        assert not self.capturing

    def empty_cache(self) -> None:
        assert not self.capturing
        assert not self.underway, "captures_underway.empty() INTERNAL ASSERT FAILED"

    def end_of_pool(self, index: int, pool: Any) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release_pool(self, index: int, pool: Any) -> None:
        self.graphs_of[pool] -= 1

    def spoil(self) -> None:
        """Do what is not permitted, while something is captured: this call and the end of the capture fail."""
        self.is_spoilt = True
        raise torch.AcceleratorError("operation not permitted when stream is capturing")


class Graph:
    """A ``CUDAGraph`` of ``cuda``."""

    cuda: TorchCuda

    def __init__(self) -> None:
        self.pool: Any = None

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        cuda = self.cuda
        assert cuda.stream != DEFAULT and capture_error_mode == "thread_local"
        for book in (cuda.underway, cuda.pinned_underway):
            if pool in book:
                raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
            book.append(pool)
        cuda.graphs_of[pool] = cuda.graphs_of.get(pool, 0) + 1
        self.pool, cuda.capturing = pool, True

    def capture_end(self) -> None:
        cuda = self.cuda
        if not cuda.capturing:
            raise RuntimeError("cudaErrorIllegalState")
        cuda.capturing = False
        if cuda.is_spoilt:
            cuda.is_spoilt = False
            raise torch.AcceleratorError("operation failed due to a previous error during capture")
        cuda.underway.remove(self.pool)
        cuda.pinned_underway.remove(self.pool)

    def replay(self) -> None:
        """Nothing."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> TorchCuda:
    cuda = TorchCuda()
    monkeypatch.setattr(Graph, "cuda", cuda, raising=False)
    replaced: dict[str, Any] = {
        "CUDAGraph": Graph,
        "Stream": lambda index: cuda.new_stream(),
        "stream": cuda.on,
        "device": lambda device: cuda.on(cuda.stream),
        "graph_pool_handle": cuda.graph_pool_handle,
        "synchronize": cuda.synchronize,
        "empty_cache": cuda.empty_cache,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_of_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release_pool, raising=False)
    monkeypatch.setattr(cuda_graph.CudaRecorder, "alias", lambda self, tensor: tensor)
    monkeypatch.setattr(cuda_graph, "_broken", [])
    monkeypatch.setattr(cuda_graph, "_of_thread", threading.local())
    return cuda


def zeros(_: object) -> torch.Tensor:
    return torch.zeros(1)


@pytest.mark.parametrize("where", ["torch", "python", "begin", "end"])
def test_after_a_capture_that_failed_the_next_one_does_not(cuda: TorchCuda, where: str) -> None:
    pool = GraphPool(torch.device("cuda", 0))
    pool.capture_pieces(zeros)

    def failing(_: object) -> torch.Tensor:
        if cuda.capturing and where == "torch":
            cuda.spoil()
        if cuda.capturing and where == "end":
            with suppress(RuntimeError):
                cuda.spoil()
        if cuda.capturing and where == "python":
            raise RuntimeError("not here")
        return torch.zeros(1)

    with pytest.MonkeyPatch.context() as patch:
        if where == "begin":
            patch.setattr(Graph, "capture_begin", lambda *_, **__: cuda.spoil())
        with pytest.raises(NotCapturable):
            pool.capture_pieces(failing)
    cuda.is_spoilt = False
    assert (cuda.stream, cuda.capturing, cuda.underway) == (DEFAULT, False, [])
    cuda.empty_cache()  # as the engine does when it sleeps
    pool.capture_pieces(zeros)
    assert cuda.underway == []


def test_a_thread_captures_on_one_stream_however_often_its_graphs_are_made_anew(cuda: TorchCuda) -> None:
    def capture() -> None:
        GraphPool(torch.device("cuda", 0)).capture_pieces(zeros)

    for _ in range(3):
        capture()
    assert cuda.streams == 1
    thread = threading.Thread(target=capture)
    thread.start()
    thread.join()
    assert cuda.streams == 2
