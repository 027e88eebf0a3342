"""CUDA graphs without a GPU: what they bake in is baked in here, too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_kernels import graphs
from vllm_kernels.triton.kernel import Kernel

_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default)
_WAITING = tuple(
    getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")
)
_launch = Kernel.launch


class FakeRecorder(TorchDispatchMode):
    """Records launches of Triton kernels, which are not run then, and torch's operators; a replay calls them again.

    Numbers stay as they were, tensors too: what depends on the host shows as a wrong result. ``memory_in_use`` counts
    graphs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], Any]] | None = None
        self._num_graphs = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        assert self._calls is None
        yield

    def begin(self) -> None:
        assert self._calls is None
        self._calls = []
        Kernel.launch = self._record_launch  # type: ignore[method-assign]
        self.__enter__()

    def end(self) -> Callable[[], None]:
        calls = self._stop()
        assert calls is not None
        self._num_graphs += 1
        return partial(_replay, calls)

    def abandon(self) -> None:
        self._stop()

    def _stop(self) -> list[Callable[[], Any]] | None:
        calls, self._calls = self._calls, None
        if calls is not None:
            self.__exit__(None, None, None)
            Kernel.launch = _launch  # type: ignore[method-assign]
        return calls

    def alias(self, tensor: Tensor) -> Tensor:
        return tensor

    def memory_in_use(self) -> int:
        return self._num_graphs * 2**20

    @property
    def _record_launch(self) -> Any:
        recorder = self

        def launch(self: Kernel, *arguments: Any, **constants: Any) -> None:
            assert recorder._calls is not None
            recorder._calls.append(partial(_launch, self, *arguments, **constants))

        return launch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WAITING or (func is torch.ops.aten.lift_fresh.default and args[0].numel() > 1):
            raise RuntimeError(f"{func} is not permitted while a stream is captured")
        out = func(*args, **kwargs)
        if func not in _EMPTY and not func.is_view and isinstance(out, (Tensor, tuple, list)):
            assert self._calls is not None
            self._calls.append(partial(_again, func, args, kwargs, out))
        return out


def _replay(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    result = func(*args, **kwargs)
    for new, old in zip(*((one,) if isinstance(one, Tensor) else one for one in (result, out)), strict=True):
        if new is not old:
            old.copy_(new)


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``GraphPool`` captures as on a GPU."""
    monkeypatch.setattr(graphs, "recorder_for", lambda device: FakeRecorder())
