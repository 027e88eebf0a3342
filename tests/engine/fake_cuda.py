"""A GPU that is not there: what its driver says of it, and a CUDA that only counts bytes. Tensors are the CPU's."""

from dataclasses import dataclass, field

import pytest
import torch

from vllm_engine.config import device
from vllm_engine.config.device import Gpu, Gpus
from vllm_engine.execution import devices
from vllm_engine.execution.model_runner import ModelRunner

MIB, GIB = 2**20, 2**30
FAKE_GPU = Gpu("Fake GPU", (9, 0), 80 * GIB)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu = FAKE_GPU) -> None:
    """Let the driver show a GPU to whoever configures an engine in this process."""
    monkeypatch.setattr(device, "find_gpus", lambda: Gpus((gpu,)))


@dataclass
class FakeCuda:
    """A ``Runtime`` whose steps take ``per_token`` bytes for each token and ``per_row`` for each request of a step.

    Weights take ``weights`` bytes from the moment on that a model is loaded. A step that does not fit raises what torch
    does. ``calls`` are what the device was asked, ``steps`` tokens and requests of each step that was computed.
    """

    total: int = 80 * GIB
    others: int = GIB
    context: int = GIB // 2
    weights: int = 16 * GIB
    per_token: int = MIB // 4
    per_row: int = MIB
    kernels: int = 100 * MIB
    """Of CUDA's own, from the first step on."""
    graphs: int = 256 * MIB
    """What graphs are said to take."""
    knows_others: bool = True
    """Whether memory can be asked for without a context."""
    calls: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    torch_device = torch.device("cpu")
    _held: int = 0
    _cached: int = 0
    _peak: int = 0
    _own: int = 0

    def free_without_context(self) -> int | None:
        return self.total - self.others if self.knows_others else None

    def use(self) -> None:
        self.calls.append("use")
        self._own = self.context

    def name(self) -> str:
        return "Fake GPU"

    def free_and_total(self) -> tuple[int, int]:
        return self.total - self.others - self._own - self._held - self._cached, self.total

    def reserved(self) -> int:
        return self._held + self._cached

    def peak_reserved(self) -> int:
        return self._peak

    def forget_peak(self) -> None:
        self._peak = self.reserved()

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")
        self._cached = 0

    def load(self) -> None:
        """A model's weights come."""
        self._held += self.weights

    def compute(self, num_tokens: int, num_requests: int) -> None:
        """A step takes memory, and leaves it in torch's cache."""
        needed = self.per_token * num_tokens + self.per_row * num_requests
        own = self.context + self.kernels
        if self.total - self.others - own - self._held < needed:
            raise torch.OutOfMemoryError("fake CUDA is out of memory")
        self._own = own
        self._cached = max(self._cached, needed)
        self._peak = max(self._peak, self.reserved())
        self.steps.append((num_tokens, num_requests))


def use_fake_cuda(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    """Engines of this process find a GPU, and run on it: their tensors are the CPU's, its memory is ``cuda``'s."""
    pretend_gpu(monkeypatch, Gpu("Fake GPU", (9, 0), cuda.total))
    monkeypatch.setattr(devices, "CudaRuntime", lambda: cuda)
    init, launch = ModelRunner.__init__, ModelRunner.launch

    def make(self: ModelRunner, *args: object, **options: object) -> None:
        init(self, *args, **options)  # type: ignore[arg-type]
        cuda.load()

    def step(self: ModelRunner, batch: object) -> object:
        counts = batch.num_scheduled_tokens  # type: ignore[attr-defined]
        cuda.compute(sum(counts.values()), len(counts))
        return launch(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelRunner, "__init__", make)
    monkeypatch.setattr(ModelRunner, "launch", step)
