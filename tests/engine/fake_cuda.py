"""A GPU that is not there: what the driver would say of it."""

import pytest

from vllm_engine.config import device
from vllm_engine.config.device import Gpu, Gpus

GIB = 2**30
FAKE_GPU = Gpu("Fake GPU", (9, 0), 80 * GIB)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu = FAKE_GPU) -> None:
    """Let the driver show a GPU to whoever configures an engine in this process."""
    monkeypatch.setattr(device, "find_gpus", lambda: Gpus((gpu,)))
