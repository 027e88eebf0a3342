"""Triton's interpreter on memory of the simulated GPU: in place, or noted down where a launch is captured."""

from functools import cache, partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.interpreter import GridExecutor

from tests.kernels.interpreter import call_without_patching
from tests.simulated_gpu import torch_cuda
from tests.simulated_gpu.facts import SHARED_MEMORY
from vllm_kernels import backend

FACES = dict.fromkeys(
    ("activation", "add", "cache", "embedding", "fp8", "linear", "norm", "quantization", "rounded"), "eager"
)
"""Torch's own operators where Triton's interpreter would take most of the time. What depends on lengths and slots, and
what graphs have to know, stays as it is on a GPU."""

_face_of_engine = backend.face_of
_run = GridExecutor.__call__


def install(*, all_interpreted: bool) -> None:
    """Let kernels run on tensors of the GPU: all of them, or those that are not of ``FACES``."""
    if not all_interpreted:
        backend.face_of = _face_of
    GridExecutor.__call__ = _launch
    call_without_patching()
    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": SHARED_MEMORY})
    driver.set_active(SimpleNamespace(utils=utils, get_current_device=lambda: 0))


@cache
def _stand_in() -> None:
    """When all of the package is there, which imports the module that this changes first."""
    from tests.simulated_gpu import stand_ins

    stand_ins.install()


def _face_of(op: str, device: torch.device, function: str | None = None) -> ModuleType:
    """``face_of``, which nobody has imported yet; where nothing but the device decides, by ``FACES``."""
    if device.type == "cuda":
        _stand_in()
    chosen = backend._chosen.get().faces
    if device.type != "cuda" or op not in FACES or backend._forced or backend._from_environment():
        return _face_of_engine(op, device, function)
    if f"{op}.{function}" in chosen or op in chosen:
        return _face_of_engine(op, device, function)
    return import_module(f"vllm_kernels.{FACES[op]}.{op}")


def _launch(self: GridExecutor, *arguments: Any, **named: Any) -> None:
    tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
    here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if len(here) == len(tensors):
        _run(self, *arguments, **named)
        return
    if here:
        raise ValueError(f"Pointer argument of {self.fn.__name__} cannot be accessed from Triton (cpu tensor?)")
    seen = [_on_cpu(value) for value in arguments]
    seen_named = {name: _on_cpu(value) for name, value in named.items()}
    torch_cuda.call_on_gpu(partial(_checked, self, seen, seen_named))


def _checked(self: GridExecutor, arguments: list[Any], named: dict[str, Any]) -> None:
    for value in (*arguments, *named.values()):
        if isinstance(value, torch.Tensor) and value.numel() and not torch_cuda.owns(value.data_ptr(), 1):
            raise torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered ({self.fn.__name__})")
    with torch.inference_mode():
        _run(self, *arguments, **named)


def _on_cpu(value: Any) -> Any:
    return torch_cuda.on_cpu(value) if isinstance(value, torch.Tensor) else value
