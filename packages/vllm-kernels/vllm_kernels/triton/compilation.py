"""Compile Triton kernels for a GPU that is not there, and read what they take of it."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_kernels.triton import dependent_launch
from vllm_kernels.triton.device import SHARED_MEMORY
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.machine_code import Loop, loops_of

_WAIT = "griddepcontrol.wait"
_NOT_COHERENT = "ld.global.nc"
_OPERATION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Compiled:
    """What a configuration takes on a family, or why it does not compile.

    ``registers`` of a thread; ``spilled`` bytes of a thread that did not fit them; ``shared`` bytes of a program; its
    ``loops``, where they were asked for.
    """

    kernel: str
    configuration: str
    target: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    error: str | None = None
    loops: list[Loop] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Of loops, what they have of instructions, of products of matrices, and of loads by their bits."""
        found = asdict(self)
        loops = found.pop("loops")
        if loops is not None:
            found["loops"] = [
                {"instructions": loop.instructions, "matrix": loop.matrix, "loads": loop.loaded}
                for loop in self.loops or ()
            ]
        return found


def compile_for(kernel: Kernel, configuration: Configuration, target: int, with_loops: bool = False) -> Compiled:
    """Compile one configuration for compute capability ``target`` (80: 8.0). Never raises for a kernel's fault."""
    where = (kernel.name, configuration.label, target)
    try:
        binary = triton.compile(
            source_for(kernel, configuration, target),
            target=GPUTarget("cuda", target, 32),
            options={"num_warps": configuration.num_warps, "num_stages": configuration.num_stages},
        )
        registers, spilled = _usage(binary.asm["cubin"])
        loops = loops_of(binary.asm["cubin"]) if with_loops else None
    except Exception as error:  # whatever the compiler says is the result
        return Compiled(*where, error=f"{type(error).__name__}: {str(error).strip()[:2000]}")
    shared = binary.metadata.shared
    room = SHARED_MEMORY[f"sm_{target}"]
    fault = f"takes {shared} bytes of shared memory, more than the {room} of a program" if shared > room else None
    if dependent_launch.are_compiled(f"sm_{target}"):
        fault = fault or fault_of_waiting(binary.asm["ptx"])
    return Compiled(*where, registers=registers, spilled=spilled, shared=shared, error=fault, loops=loops)


def fault_of_waiting(listing: str) -> str | None:
    """What a kernel in PTX does before it waits for those before it, and must not; None for nothing."""
    before, found, after = listing.partition(".entry")[2].partition(_WAIT)
    if not found:
        return "does not wait for the kernels before it"
    if _NOT_COHERENT in after:
        return f"loads by {_NOT_COHERENT}, which is for what nobody writes from the kernel's beginning on"
    for operation in _OPERATION.findall(before):
        if operation in ("bra", "ret", "exit"):
            return f"may end without having waited for the kernels before it: {operation}"
        if (".global" in operation or operation.startswith("cp.async")) and not operation.startswith("prefetch"):
            return f"does not wait for the kernels before it to {operation}"
    return None


def source_for(kernel: Kernel, configuration: Configuration, target: int) -> ASTSource:
    """What ``triton.compile`` takes for compute capability ``target``."""
    names = kernel.function.arg_names
    missing = {name: None for name, kind in configuration.types.items() if kind is None}
    early = {dependent_launch.PARAMETER: dependent_launch.are_compiled(f"sm_{target}")}
    constants = {**configuration.constants, **missing, **early}
    signature = {name: "constexpr" if name in constants else configuration.types[name] for name in names}
    # Torch's tensors begin at multiples of 16 bytes, and the launcher tells the compiler so; and so it does of numbers
    # that a kernel is specialised by. Those are strides and widths of models, which are multiples of 16.
    multiples = [
        place
        for place, parameter in enumerate(kernel.function.params)
        if str(signature[parameter.name]).startswith("*")
        or (signature[parameter.name] in ("i32", "i64") and not parameter.do_not_specialize)
    ]
    aligned = {(place,): [["tt.divisibility", 16]] for place in multiples}
    return ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=aligned)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes on the stack and in local memory, of one thread, as the assembler wrote them down."""
    from triton.knobs import nvidia

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [nvidia.cuobjdump.path, "-res-usage", str(file)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.search(shown)
    if found is None:
        raise RuntimeError(f"cuobjdump told nothing of registers: {shown[:200]!r}")
    registers, stack, _, local = map(int, found.groups())
    return registers, stack + local
