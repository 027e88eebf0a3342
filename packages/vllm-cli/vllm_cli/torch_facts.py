"""What torch and the kernels say of themselves: ``python -m vllm_cli.torch_facts`` prints it as JSON.

It runs in a process of its own: importing torch takes a second, and a broken installation may end the interpreter.
"""

import json
import pkgutil
import platform
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Facts = dict[str, str]


def main() -> int:
    """Print both sections. A fact that cannot be found out is a line that says why."""
    json.dump({"torch": _guarded(_torch), "kernels": _guarded(_kernels)}, sys.stdout)
    return 0


def _guarded(find: Callable[[], Facts]) -> Facts:
    try:
        return find()
    except Exception as error:
        return {"not available": f"{type(error).__name__}: {error}"}


def _torch() -> Facts:
    torch: Any = import_module("torch")
    build = torch.__config__.show()
    facts = {
        "version": torch.__version__,
        "built for": _built_for(torch),
        "compiler": _found(r"- ((?:GCC|clang|MSVC).*)", build, flags=re.IGNORECASE),
        "blas": _found(r"BLAS_INFO=([^,]*)", build),
        "onednn": _found(r"MKL-DNN v(\S+)", build) if torch.backends.mkldnn.is_available() else "not in this build",
        "cpu kernels": torch.backends.cpu.get_cpu_capability(),
        "openmp": ", ".join(filter(None, (_found(r"(OpenMP \d+)", build), *_openmp_libraries()))),
        "threads": f"{torch.get_num_threads()} for one operation, {torch.get_num_interop_threads()} side by side",
        "devices": ", ".join(_devices(torch)),
    }
    return {name: value for name, value in facts.items() if value}


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if getattr(torch.version, "hip", None):
        return f"ROCm {torch.version.hip}"
    return "CPU only"


def _devices(torch: Any) -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            found.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, capability {major}.{minor})")
    return found


def _openmp_libraries() -> list[str]:
    """Files of the OpenMP runtimes in this process; more than one is a common cause of slow or hanging threads."""
    if platform.system() != "Linux":
        return []
    words = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    files = {parts[5] for parts in words if len(parts) > 5}
    return sorted(file for file in files if re.search(r"/lib(gomp|iomp|omp)\d*[.-]", file))


def _kernels() -> Facts:
    """For each device, the face that serves each operation; the native library and its level."""
    torch: Any = import_module("torch")
    backend: Any = import_module("vllm_kernels.backend")
    describe: Any = import_module("vllm_kernels.describe")
    operations = [module.name for module in pkgutil.iter_modules(import_module("vllm_kernels.ops").__path__)]
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    faces = {kind: _faces(backend, operations, torch.device(kind)) for kind in kinds}
    return {**faces, **describe.native_facts()}


def _faces(backend: Any, operations: list[str], device: Any) -> str:
    served: dict[str, list[str]] = {}
    for operation in operations:
        try:
            face = backend.face_of(operation, device).__name__.split(".")[1]
        except Exception as error:
            face = f"none ({type(error).__name__}: {error})"
        served.setdefault(face, []).append(operation)
    return "; ".join(f"{face} for {', '.join(names)}" for face, names in served.items())


def _found(pattern: str, text: str, *, flags: int = 0) -> str:
    match = re.search(pattern, text, flags)
    return match[1].strip() if match else ""


if __name__ == "__main__":
    sys.exit(main())
