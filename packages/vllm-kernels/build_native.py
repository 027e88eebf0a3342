"""Compiles ``csrc/cpu`` into one shared object. Needs g++ or clang++ and nothing else: no torch, no Python headers.

    python build_native.py             # into vllm_kernels/cpu, only what changed since the last time
    python build_native.py --check     # exit code 1 when something would have to be compiled

Every kernel file is compiled once for each level (set of instructions); ``registry.cpp`` chooses among them when it
runs.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc" / "cpu"
LIBRARY = HERE / "vllm_kernels" / "cpu" / "libvllm_kernels_cpu.so"
OBJECTS = HERE / "build" / "native"

COMMON = ("level.cpp", "registry.cpp")
"""Files compiled once, for any x86-64: they must not use instructions that the machine may lack."""

FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"),
    # A product and a sum are fused where the source says fma and nowhere else: results must not hang on the compiler.
    "-ffp-contract=off",
    *("-Wall", "-Wextra", "-Wno-unused-function", "-Wno-psabi", "-Wno-ignored-attributes"),
    # g++ 12 says it of its own intrinsics.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_BF16 = (*_AVX512, "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi")
LEVELS = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _BF16,
    "amx": (*_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
"""Level -> compiler flags."""


class CannotBuild(Exception):
    """There is no C++ compiler here, or the kernels are not for this machine."""


@dataclass(frozen=True)
class Step:
    """One object file: its command, and the digest of everything that it is made from."""

    command: tuple[str, ...]
    target: Path
    digest: str

    @property
    def done(self) -> bool:
        stamp = self.target.with_suffix(".digest")
        return self.target.exists() and stamp.exists() and stamp.read_text() == self.digest

    def run(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(self.command, check=True)
        self.target.with_suffix(".digest").write_text(self.digest)


def find_compiler() -> str:
    """``$CXX``, else g++, else clang++. Raises ``CannotBuild``, also on another processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise CannotBuild(f"the kernels are for x86-64, and this is {platform.machine()}")
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++"]:
        if path := shutil.which(name):
            return path
    raise CannotBuild(f"no C++ compiler found (looked for {wanted or 'g++, clang++'})")


def plan(compiler: str, objects: Path = OBJECTS, extra_flags: tuple[str, ...] = ()) -> list[Step]:
    """The object files that the library is made of."""
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("**/*.h")))
    jobs = [(SOURCES / name, "", ()) for name in COMMON]
    kernels = sorted(path for path in SOURCES.glob("*.cpp") if path.name not in COMMON)
    jobs += [(path, level, flags) for path in kernels for level, flags in LEVELS.items()]
    steps = []
    for source, level, flags in jobs:
        target = objects / (f"{source.stem}.{level}.o" if level else f"{source.stem}.o")
        define = (f"-DVLLM_LEVEL={level}",) if level else ()
        options = (*FLAGS, *flags, *define, *extra_flags)
        digest = hashlib.sha256(repr((compiler, options)).encode() + headers + source.read_bytes()).hexdigest()
        command = (compiler, *options, "-c", str(source), "-o", str(target))
        steps.append(Step(command, target, digest))
    return steps


def build(library: Path = LIBRARY, objects: Path = OBJECTS, extra_flags: tuple[str, ...] = ()) -> Path:
    """Bring the library up to date. Raises ``CannotBuild``; ``CalledProcessError`` when the compiler fails."""
    compiler = find_compiler()
    steps = plan(compiler, objects, extra_flags)
    todo = [step for step in steps if not step.done]
    if todo or not library.exists():
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(Step.run, todo))
        library.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a process may have the old one open.
        fresh = library.with_suffix(".new")
        subprocess.run(
            (compiler, "-shared", "-Wl,--no-undefined", *(str(step.target) for step in steps), "-o", str(fresh)),
            check=True,
        )
        fresh.replace(library)
    return library


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile nothing, only tell")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            return int(not LIBRARY.exists() or any(not step.done for step in plan(find_compiler())))
        build()
    except CannotBuild as problem:
        print(f"vllm-kernels: {problem}: operations on a CPU will be torch's own, which are slower", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
