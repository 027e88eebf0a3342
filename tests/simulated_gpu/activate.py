"""Lets this process, and those that it starts, find the simulated GPU: modules are changed when they are imported."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INTERPRETS_ALL = os.environ.get("SIMULATED_GPU_KERNELS") == "all"
"""Whether Triton's interpreter computes all kernels. It takes a minute for what takes a second otherwise."""


def activate() -> None:
    """Before any of the modules is imported."""
    sys.meta_path.insert(0, _Finder())
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # it warns of operators that are replaced
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = [str(HERE / "site"), str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *(folder for folder in folders if folder not in ("", *ours))])


def _give_torch_a_gpu(torch: ModuleType) -> None:
    if torch.version.cuda is not None:
        raise RuntimeError("the simulated GPU is for a torch without CUDA: pip install a torch for the CPU")
    from tests.simulated_gpu import torch_cuda
    from tests.simulated_gpu.build import build

    torch_cuda.install(build())


def _show_it_to_the_engine(device: ModuleType) -> None:
    from tests.simulated_gpu import facts
    from tests.simulated_gpu.driver import FakeDriver

    gpu = device.Gpu(facts.NAME, facts.CAPABILITY, facts.TOTAL, facts.BUS_ID)
    driver = FakeDriver([gpu] if os.environ.get("CUDA_VISIBLE_DEVICES") != "" else [])
    device._driver = lambda: driver
    torch_build = device.torch_build

    def with_cuda() -> tuple[str, str] | None:
        found = torch_build()
        return None if found is None else (found[0], found[1] or facts.CUDA)

    device.torch_build = with_cuda


def _let_kernels_run(_: ModuleType) -> None:
    from tests.simulated_gpu import kernels

    if os.environ.get("TRITON_INTERPRET") == "1":  # else kernels are only compiled here
        kernels.install(all_interpreted=INTERPRETS_ALL)


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "torch": _give_torch_a_gpu,
    "vllm_engine.config.device": _show_it_to_the_engine,
    "vllm_kernels.backend": _let_kernels_run,
}


class _Finder(MetaPathFinder):
    """Finds what others find, and changes it when it has been loaded."""

    def __init__(self) -> None:
        self._looking_for: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        change = _CHANGES.get(name)
        if change is None or name in self._looking_for:
            return None
        self._looking_for.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking_for.remove(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec
