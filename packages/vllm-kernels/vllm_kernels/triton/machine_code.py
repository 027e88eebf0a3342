"""What is in the loops of a compiled kernel: the instructions of a turn, as NVIDIA's disassembler lists them.

A multiprocessor starts four instructions of a warp a clock, so that ``instructions * warps / 4`` clocks are the least
that a turn takes, however many matrix products or bytes it is for.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", re.MULTILINE)
_BRANCH = re.compile(r"(0x[0-9a-f]+)\s*$")
_LEAST = 8
"""Instructions of a loop that is one: shorter ones wait for something."""
_MATRIX = ("HMMA", "IMMA", "QMMA", "HGMMA", "QGMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")
_GLOBAL = ("LDG", "LDGSTS")


@dataclass(frozen=True, slots=True)
class Loop:
    """A turn of a loop without loops in it.

    Args:
        instructions: of a warp; both sides of branches count.
        counts: name of an instruction, with its suffixes (``"HGMMA.64x64x16.F32.BF16"``) -> how often it stands there.
    """

    instructions: int
    counts: dict[str, int]

    def of(self, *names: str) -> int:
        """How many instructions have one of these names, whatever their suffixes (``of("HMMA")``)."""
        return sum(count for name, count in self.counts.items() if name.split(".")[0] in names)

    @property
    def matrix(self) -> dict[str, int]:
        """The products of matrices among them."""
        return {name: count for name, count in self.counts.items() if name.split(".")[0] in _MATRIX}

    @property
    def loaded(self) -> dict[int, int]:
        """Bits of a load from global memory -> how many such loads. A thread loads 128 at most."""
        widths: Counter[int] = Counter()
        for name, count in self.counts.items():
            if name.split(".")[0] in _GLOBAL:
                widths[_bits(name)] += count
        return dict(sorted(widths.items()))


def loops_of(cubin: bytes) -> list[Loop]:
    """Innermost loops of a kernel's machine code, in their order; the whole kernel where it has none.

    Raises ``subprocess.CalledProcessError`` for what is no such code.
    """
    return loops_in(listing_of(cubin))


def listing_of(cubin: bytes) -> str:
    """The disassembler's listing. Raises ``subprocess.CalledProcessError`` for what is no machine code."""
    from triton.knobs import nvidia

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [nvidia.cuobjdump.path, "-sass", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_in(listing: str) -> list[str]:
    """Names of all instructions, with their suffixes, in the order in which they stand there."""
    return [name for _, name, _ in _INSTRUCTION.findall(listing)]


def loops_in(listing: str) -> list[Loop]:
    """The same of a disassembler's listing."""
    found = [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(listing)]
    place = {at: number for number, (at, _, _) in enumerate(found)}
    spans = []
    for number, (at, name, rest) in enumerate(found):
        target = _BRANCH.search(rest) if name.split(".")[0] == "BRA" else None
        begin = place.get(int(target[1], 16)) if target else None
        if begin is not None and found[begin][0] < at and number - begin >= _LEAST:
            spans.append((begin, number))
    inner = [span for span in spans if not any(span != other and _within(other, span) for other in spans)]
    names = [name for _, name, _ in found]
    return [_loop(names[begin : end + 1]) for begin, end in sorted(inner) or [(0, len(names) - 1)]]


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _loop(names: list[str]) -> Loop:
    counts = Counter(names)
    counts.pop("NOP", None)
    return Loop(counts.total(), dict(counts.most_common()))


def _bits(name: str) -> int:
    widths = [suffix.lstrip("US") for suffix in name.split(".")[1:]]
    return next((int(width) for width in widths if width in ("8", "16", "64", "128")), 32)
