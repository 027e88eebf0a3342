"""Compiles single kernel files for tests: AMX emulated, so that what is written for tiles runs without it."""

import ctypes
import importlib.util
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vllm_kernels.cpu import native

ROOT = Path(__file__).resolve().parents[2] / "packages" / "vllm-kernels"
QUICK = ("-O1", "-DVLLM_EMULATE_AMX")
"""Flags of an emulating library: what takes long is the compilation."""


def build_script() -> ModuleType:
    """``build_native.py``, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "build_native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_file(name: str, level: str, folder: Path, flags: tuple[str, ...] = QUICK) -> ctypes.CDLL:
    """``csrc/cpu/<name>.cpp`` for one level as a library of its own, which has ``vllm_cpu_kernel(name)``."""
    build = build_script()
    shim = folder / f"{name}_shim.cpp"
    shim.write_text(f"""
        #include <cstring>
        #include "abi.h"
        #include "parallel.h"
        OpenMP vllm_openmp = {{nullptr, nullptr, nullptr}};
        extern "C" const KernelEntry vllm_{name}_{level}[];
        extern "C" __attribute__((visibility("default"))) void* vllm_cpu_kernel(const char* name) {{
          for (const KernelEntry* entry = vllm_{name}_{level}; entry->name; ++entry)
            if (!std::strcmp(entry->name, name)) return entry->function;
          return nullptr;
        }}
        extern "C" __attribute__((visibility("default"))) void vllm_cpu_use_openmp(void* parallel, void* number,
                                                                                   void* count) {{
          vllm_openmp.parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(parallel);
          vllm_openmp.thread_num = reinterpret_cast<int (*)()>(number);
          vllm_openmp.num_threads = reinterpret_cast<int (*)()>(count);
        }}
    """)
    library = folder / f"{name}_{level}.so"
    options = (*build.FLAGS, *build.LEVELS[level], f"-DVLLM_LEVEL={level}", f"-I{build.SOURCES}", *flags)
    sources = (str(build.SOURCES / f"{name}.cpp"), str(shim))
    subprocess.run((build.find_compiler(), *options, "-shared", *sources, "-o", str(library)), check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.vllm_cpu_kernel.restype = ctypes.c_void_p
    loaded.vllm_cpu_kernel.argtypes = (ctypes.c_char_p,)
    loaded.vllm_cpu_use_openmp.argtypes = (ctypes.c_void_p,) * 3
    loaded.vllm_cpu_use_openmp(*native._openmp())
    return loaded


@contextmanager
def kernels_from(library: ctypes.CDLL) -> Iterator[None]:
    """Serve the kernels that ``library`` has by it inside the ``with`` block, in all threads."""
    before = [(kernel, kernel.call) for kernel in native.kernels]
    try:
        for kernel, _ in before:
            if address := library.vllm_cpu_kernel(kernel.name.encode()):
                kernel.call = kernel._prototype(address)
        yield
    finally:
        for kernel, call in before:
            kernel.call = call
