"""What is chosen for a kernel by the shape of its work: tiles, warps, stages of the pipeline of loads.

A table of the GPU's family says it for classes of shapes (``tables/sm_90.json``; ``python -m vllm_kernels.tune`` writes
one), a kernel's own rule for all others. Both are asked at every launch and by ``configurations``, so what is compiled
ahead of time is what runs. Nothing is measured when an engine starts.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from vllm_kernels import batch_invariance
from vllm_kernels.triton.device import SHARED_MEMORY, family_of, shared_memory

Choice = dict[str, int]
"""Compile-time values, ``num_warps`` and ``num_stages``."""
ShapeClass = Mapping[str, int | str]
"""What a choice depends on."""
Where = torch.device | str
"""A device, or the family of one that is not there."""

VARIABLE = "VLLM_KERNELS_TUNING"
"""A folder with tables that win over those of the wheel."""
FOLDER = Path(__file__).parent / "tables"
ORIGINS = ("compiled", "measured")
"""Chosen from what the compiler says of registers, spills and shared memory; or timed on a device."""
_COUNTS = ("num_stages",)
"""Not powers of two."""


class TableError(ValueError):
    """A table that names what there is not; says which and where."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a choice means for one program.

    Args:
        bound: by which ceiling: more bytes under way are wanted, or a larger tile.
        area: elements of the tile that is summed up, or of what a program goes over.
        stage_bytes: of what one turn of the loop loads.
        kept_bytes: of shared memory that a program has beside that.
    """

    bound: Literal["memory", "matrix"]
    area: int
    stage_bytes: int = 0
    kept_bytes: int = 0

    def shared_bytes(self, num_stages: int) -> int:
        """Of shared memory, about: one stage is in registers."""
        return self.kept_bytes + self.stage_bytes * max(num_stages - 1, 1)


@dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel for which something is chosen.

    Args:
        kernel: its name.
        fields: of its shape classes.
        rule: a class -> what is chosen without a table.
        candidates: a class -> for each parameter the values that a table may name.
        classes: family -> the classes of ``configurations``.
        work: a class and a choice together -> what they mean. All four take keywords.
    """

    kernel: str
    fields: tuple[str, ...]
    rule: Callable[..., Choice]
    candidates: Callable[..., Mapping[str, tuple[int, ...]]]
    classes: Callable[[str], Iterable[ShapeClass]]
    work: Callable[..., Work]

    def choose(self, where: Where, **shape: int | str) -> Choice:
        """For one class; not to be changed. Always by the rule where a result must not depend on the batch.

        Raises ``TableError`` for a table that cannot be read, or an entry of it that is none of the candidates.
        """
        values = tuple(shape[name] for name in self.fields)
        if _forced and (self.kernel, values) in _forced:
            return _forced[self.kernel, values]
        return _chosen(self, where, values, batch_invariance.enabled())

    def key(self, shape: ShapeClass) -> tuple[str, tuple[int | str, ...]]:
        """Of a class in a table. Raises ``KeyError`` for a class without one of the fields."""
        return self.kernel, tuple(shape[name] for name in self.fields)

    def fault(self, choice: Mapping[str, Any], **shape: int | str) -> str | None:
        """What is wrong with a choice in a table; None if nothing is."""
        allowed = self.candidates(**shape)
        if set(choice) != set(allowed):
            return f"has {', '.join(sorted(choice))} and not {', '.join(sorted(allowed))}"
        for name, value in choice.items():
            if type(value) is not int or value < 1 or (name not in _COUNTS and value & (value - 1)):
                return f"{name} must be a {'number' if name in _COUNTS else 'power of two'}, got {value!r}"
            if value not in allowed[name]:
                return f"{name} must be of {', '.join(map(str, allowed[name]))}, got {value}"
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a table: what is chosen for a class of a kernel, and whether that was measured."""

    kernel: str
    shape: ShapeClass
    choice: Choice
    origin: str


@dataclass(frozen=True, slots=True)
class Table:
    """Of a family. ``device``: the one that the measured entries were timed on."""

    family: str
    device: str | None
    entries: tuple[Entry, ...]

    def save(self, file: Path) -> None:
        """As JSON, an entry a line. The file appears whole."""
        lines = [
            json.dumps({"kernel": each.kernel, "class": each.shape, "choice": each.choice, "origin": each.origin})
            for each in self.entries
        ]
        head = f'{{"family": {json.dumps(self.family)}, "device": {json.dumps(self.device)}, "entries": [\n'
        partial = file.with_suffix(".partial")
        partial.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
        partial.replace(file)


def read_table(file: Path) -> Table:
    """Raises ``TableError`` for a file that is none; what entries say is checked by ``check``."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = tuple(
            Entry(each["kernel"], each["class"], each["choice"], each["origin"]) for each in content["entries"]
        )
        if not all(isinstance(part, dict) for each in entries for part in (each.shape, each.choice)):
            raise TypeError("class and choice must be objects")
        return Table(content["family"], content["device"], entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"{file} is no table of tuned kernels: {type(error).__name__}: {error}") from error


def table_file(family: str) -> Path | None:
    """Where the table of a family is: in the folder of ``VLLM_KERNELS_TUNING``, else in the wheel; None without."""
    folder = os.environ.get(VARIABLE)
    for file in ([Path(folder, f"{family}.json")] if folder else []) + [FOLDER / f"{family}.json"]:
        if file.exists():
            return file
    return None


def check(table: Table, tunables: Iterable[Tunable]) -> None:
    """Raises ``TableError`` naming the first entry that asks for what there is not, or stands there twice."""
    known = {tunable.kernel: tunable for tunable in tunables}
    if table.family not in SHARED_MEMORY:
        raise TableError(f"family must be one of {', '.join(SHARED_MEMORY)}, got {table.family!r}")
    seen = set()
    for number, entry in enumerate(table.entries, 1):
        where = f"entry {number} of {table.family}, {entry.kernel} {dict(entry.shape)}"
        tunable = known.get(entry.kernel)
        if tunable is None:
            raise TableError(f"{where}: no kernel of that name is tuned: {', '.join(sorted(known))}")
        if set(entry.shape) != set(tunable.fields):
            raise TableError(f"{where}: a class has {', '.join(tunable.fields)}")
        key = tunable.key(entry.shape)
        if key not in {tunable.key(shape) for shape in tunable.classes(table.family)}:
            raise TableError(f"{where}: is not compiled ahead of time for any shape")
        fault = tunable.fault(entry.choice, **entry.shape)
        if fault:
            raise TableError(f"{where}: {fault}")
        needed = tunable.work(**entry.shape, **entry.choice).shared_bytes(entry.choice.get("num_stages", 1))
        if needed > SHARED_MEMORY[table.family]:
            raise TableError(f"{where}: {needed} bytes of shared memory are more than {SHARED_MEMORY[table.family]}")
        if entry.origin not in ORIGINS:
            raise TableError(f"{where}: origin must be one of {', '.join(ORIGINS)}, got {entry.origin!r}")
        if entry.origin == "measured" and not table.device:
            raise TableError(f"{where}: is measured, and the table names no device")
        if key in seen:
            raise TableError(f"{where}: stands there twice")
        seen.add(key)


_forced: dict[tuple[str, tuple[int | str, ...]], Choice] = {}


@contextmanager
def forced(tunable: Tunable, shape: ShapeClass, choice: Choice) -> Iterator[None]:
    """Have ``choice`` for one class inside the ``with`` block, in all threads: to compile or to time it."""
    key = tunable.key(shape)
    _forced[key] = choice
    try:
        yield
    finally:
        del _forced[key]


@cache
def _entries(family: str) -> dict[tuple[str, frozenset[tuple[str, int | str]]], Choice]:
    file = table_file(family)
    entries = () if file is None else read_table(file).entries
    return {(entry.kernel, frozenset(entry.shape.items())): entry.choice for entry in entries}


@cache
def _chosen(tunable: Tunable, where: Where, values: tuple[int | str, ...], by_rule: bool) -> Choice:
    shape = dict(zip(tunable.fields, values, strict=True))
    family = where if isinstance(where, str) else family_of(where)
    choice = None if by_rule else _entries(family).get((tunable.kernel, frozenset(shape.items())))
    if choice is None:
        choice = tunable.rule(**shape)
    elif fault := tunable.fault(choice, **shape):
        raise TableError(f"the table of {family}, {tunable.kernel} {shape}: {fault}")
    room = SHARED_MEMORY[where] if isinstance(where, str) else shared_memory(where)
    stages = choice.get("num_stages", 1)
    while stages > 1 and tunable.work(**shape, **choice).shared_bytes(stages) > room:
        stages -= 1
    return {**choice, "num_stages": stages} if "num_stages" in choice else choice
