"""Kernel graphs: a sequence of kernel calls captured once and replayed without Python, as CUDA graphs are.

A captured call keeps its numbers and addresses. What changes from one replay to the next is the contents of the memory
that it reads, so inputs are written into the same tensors each time.

A call whose numbers do change (attention to sequences of any lengths) can be left out: the capture is in pieces then,
and a replay makes such calls anew between them.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vllm_kernels import batch_invariance
from vllm_kernels.backend import face_of
from vllm_kernels.cpu import graph as cpu
from vllm_kernels.cpu import native
from vllm_kernels.cpu.graph import NotCapturable
from vllm_kernels.cpu.scratch import Scratch

__all__ = ["Graph", "GraphPool", "NotCapturable", "Pieces", "Recorder", "circumstances", "recorder_for"]

Between = Callable[[Tensor, Tensor], None]
"""A call that is made anew: of what it reads, and what it writes."""


class Graph(Protocol):
    """What ``GraphPool.capture`` gives."""

    def replay(self) -> None:
        """Make the captured calls again. Raises ``IndexError`` where one finds an index that is out of range."""


class Recorder(Protocol):
    """What a device has to capture with: ``cuda.graph`` says what each method is for."""

    def aside(self) -> AbstractContextManager[None]: ...
    def begin(self) -> None: ...
    def end(self) -> Callable[[], None]: ...
    def abandon(self) -> None: ...
    def alias(self, tensor: Tensor) -> Tensor: ...
    def memory_in_use(self) -> int: ...


class Pieces:
    """Where a function that is captured in pieces says where one ends. It is given one when it is called."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self.parts: list[Callable[[], None]] = []
        """What a replay calls in turn."""

    def between(self, call: Between, source: Tensor, target: Tensor) -> None:
        """Make a call now, and anew at each replay, with the same two tensors.

        Args:
            call: reads ``source`` and writes ``target``; what else it uses, it finds out each time.
            source: computed by the function.
            target: allocated by the function, before this call.
        """
        recorder = self._recorder
        if recorder is None:
            call(source, target)
            return
        self.parts.append(recorder.end())
        self.parts.append(partial(call, recorder.alias(source), recorder.alias(target)))
        call(source, target)
        recorder.begin()


class _Parts:
    """A graph of one or more pieces, with the calls between them."""

    def __init__(self, parts: list[Callable[[], None]]) -> None:
        self._parts = parts

    def replay(self) -> None:
        """Call them in turn."""
        for part in self._parts:
            part()


class GraphPool:
    """Captures graphs that share the memory of their tensors: a graph's result holds until another one is replayed.

    Args:
        device: what its graphs run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorder = recorder_for(device)
        self.available = self._recorder is not None or (device.type == "cpu" and native.why_not() is None)
        """Whether there are kernels on this device that can be captured."""
        self.in_pieces = self._recorder is not None
        """Whether ``capture_pieces`` is possible."""
        self._scratch = Scratch()

    def capture(self, function: Callable[[], Tensor], *, num_warmups: int = 1) -> tuple[Graph, Tensor]:
        """Call ``function`` and record its kernels.

        Args:
            function: it may call operations of ``vllm_kernels.ops`` on tensors that stay where they are, view tensors
                and allocate them; on a CPU, nothing else. On a GPU, nothing that waits for it.
            num_warmups: on a GPU, times that it is called before, at least once: kernels are compiled then, and what
                is worked out once, such as plans of attention, is there when it is captured.

        Returns:
            The graph and the function's result, which a replay writes anew. On a GPU the call that is recorded computes
            nothing: only a replay does.

        Raises:
            NotCapturable: the function does something else, or nothing can be captured here.
        """
        if self._recorder is None:
            if not self.available:
                raise NotCapturable("there are no native kernels here")
            return cpu.capture(function, self._scratch)
        face = face_of("attention", self._device).__name__.split(".")[-2]
        if face != "triton":
            raise NotCapturable(f"attention is served by the {face} face, which looks at lengths while it runs")
        return self._record(lambda pieces: function(), num_warmups)

    def capture_pieces(self, function: Callable[[Pieces], Tensor], *, num_warmups: int = 1) -> tuple[Graph, Tensor]:
        """As ``capture``, of a function that says itself where pieces end. Only on a GPU.

        Args:
            function: is given the ``Pieces`` to say it to.
            num_warmups: as of ``capture``.
        """
        if self._recorder is None:
            raise NotCapturable("graphs in pieces are for GPUs")
        return self._record(function, num_warmups)

    def memory_in_use(self) -> int:
        """Bytes in use on the device, 0 where that is not known."""
        return 0 if self._recorder is None else self._recorder.memory_in_use()

    def _record(self, function: Callable[[Pieces], Tensor], num_warmups: int) -> tuple[Graph, Tensor]:
        recorder = self._recorder
        if recorder is None:
            raise NotCapturable("there is nothing to capture with")
        with recorder.aside():
            for _ in range(max(1, num_warmups)):
                function(Pieces())
        with recorder.aside(), _abandoned_if_it_fails(recorder):
            pieces = Pieces(recorder)
            recorder.begin()
            result = function(pieces)
            pieces.parts.append(recorder.end())
        return _Parts(pieces.parts), recorder.alias(result)


@contextmanager
def _abandoned_if_it_fails(recorder: Recorder) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        recorder.abandon()
        if isinstance(error, RuntimeError) and not isinstance(error, NotCapturable):
            raise NotCapturable(f"{type(error).__name__}: {error}") from error
        raise


def recorder_for(device: torch.device) -> Recorder | None:
    """What captures on a device; None where kernels of the native library are recorded instead, or nothing is."""
    if device.type != "cuda":
        return None
    from vllm_kernels.cuda.graph import CudaRecorder

    return CudaRecorder(device)


def circumstances() -> Hashable:
    """What a graph is fixed to beside its inputs: it must be captured again when this is another value."""
    return torch.get_num_threads(), batch_invariance.enabled(), native.level()
