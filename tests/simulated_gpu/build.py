"""Compiles the simulated GPU."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES / "built"


def build() -> Path:
    """The library of ``device.cpp`` for the torch that is installed, compiled when it is not there yet."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    torch = Path(spec.origin).parent
    texts = [file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]*"))]
    digest = hashlib.sha256(b"".join([*texts, (torch / "version.py").read_bytes()])).hexdigest()
    library = BUILT / f"device_{digest[:16]}.so"
    if library.exists():
        return library
    BUILT.mkdir(exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    print("compiling the simulated GPU", file=sys.stderr)
    subprocess.run(
        [
            *(os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-shared", "-fPIC", "-w"),
            *(f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}", str(SOURCES / "device.cpp")),
            *(f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", f"-Wl,-rpath,{torch / 'lib'}"),
            *("-o", str(unfinished)),
        ],
        check=True,
    )
    unfinished.rename(library)
    return library
