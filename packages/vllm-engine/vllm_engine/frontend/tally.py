"""Counts by name that several processes may share."""

import mmap
import os
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

_CELL_BYTES = 8


class Tally(Protocol):
    """How much each of several names has. ``own`` is what this process has counted, ``total`` what all have."""

    @property
    def own(self) -> int: ...

    @property
    def total(self) -> int: ...

    def of(self, name: str) -> int:
        """What a name has, in all processes."""
        ...

    def own_of(self, name: str) -> int:
        """What a name has in this process."""
        ...

    def holders(self) -> set[str]:
        """Names that have anything."""
        ...

    def add(self, name: str, count: int) -> None:
        """Give ``count`` more to a name, or take it from it when that is negative."""
        ...


class LocalTally:
    """A tally of this process alone. A name that has nothing is forgotten."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.total = 0

    @property
    def own(self) -> int:
        """The same as ``total``."""
        return self.total

    def of(self, name: str) -> int:
        """What a name has."""
        return self._counts.get(name, 0)

    own_of = of

    def holders(self) -> set[str]:
        """Names that have anything."""
        return set(self._counts)

    def add(self, name: str, count: int) -> None:
        """Give ``count`` more to a name."""
        self.total += count
        self._counts[name] += count
        if not self._counts[name]:
            del self._counts[name]


class SharedTable:
    """Tallies in memory that several processes have: each writes to a row of its own, and reads those of all.

    There is no lock that a process which is stopped or killed could hold, and an aligned cell is written at once. Two
    processes that look at the same moment do not see each other: a limit may be passed by what each of the others takes
    in between its look and its entry, which is one request. Names that were not known at the beginning share a place.
    """

    def __init__(self, file: int, columns: Sequence[str], rows: int, names: Sequence[str], own: int | None) -> None:
        """
        Args:
            file: descriptor of ``create``.
            columns: names of the tallies.
            rows: number of processes.
            names: all names that are counted, the same in all processes.
            own: the row of this process; None for one that only looks after the others.
        """
        self._columns = {column: place for place, column in enumerate(columns)}
        self._rows = rows
        self._names = list(dict.fromkeys(names))
        self._own = own
        memory = mmap.mmap(file, self._num_cells(len(columns), rows, self._names) * _CELL_BYTES)
        self._cells = memoryview(memory).cast("q")

    @classmethod
    def create(cls, columns: Sequence[str], rows: int, names: Sequence[str]) -> int:
        """Memory full of zeros, as a file without a name: it goes with the last process that has it."""
        file = os.memfd_create("vllm-counts")
        os.ftruncate(file, cls._num_cells(len(columns), rows, list(dict.fromkeys(names))) * _CELL_BYTES)
        return file

    @staticmethod
    def _num_cells(columns: int, rows: int, names: Sequence[str]) -> int:
        return columns * rows * (len(names) + 2)

    def tally(self, column: str) -> "SharedTally":
        """One of the tallies."""
        width = len(self._names) + 2
        start = self._columns[column] * self._rows * width
        return SharedTally(self._cells[start : start + self._rows * width], self._rows, self._names, self._own)

    def clear(self, row: int, columns: Sequence[str]) -> None:
        """Take back what a process has counted that is gone."""
        for column in columns:
            self.tally(column).clear(row)


class SharedTally:
    """A tally of a ``SharedTable``: for each process the total, what each name has, and what all others have."""

    def __init__(self, cells: "memoryview[int]", rows: int, names: Sequence[str], own: int | None) -> None:
        self._cells = cells
        self._width = len(names) + 2
        self._starts = range(0, rows * self._width, self._width)
        self._place = {name: place for place, name in enumerate(names, 1)}
        self._own = None if own is None else own * self._width

    @property
    def own(self) -> int:
        """What this process has counted."""
        return self._cells[self._own_start]

    @property
    def total(self) -> int:
        """What all processes have counted."""
        return sum(self._cells[start] for start in self._starts)

    def of(self, name: str) -> int:
        """What a name has, in all processes."""
        place = self._place_of(name)
        return sum(self._cells[start + place] for start in self._starts)

    def own_of(self, name: str) -> int:
        """What a name has in this process."""
        return self._cells[self._own_start + self._place_of(name)]

    def holders(self) -> set[str]:
        """Names that have anything in any process."""
        return {name for name in self._place if self.of(name)}

    def add(self, name: str, count: int) -> None:
        """Give ``count`` more to a name."""
        start = self._own_start
        self._cells[start] += count
        self._cells[start + self._place_of(name)] += count

    def clear(self, row: int) -> None:
        """Set what a process has counted to nothing."""
        start = self._starts[row]
        for place in range(start, start + self._width):
            self._cells[place] = 0

    @property
    def _own_start(self) -> int:
        if self._own is None:
            raise ValueError("this process has no row")
        return self._own

    def _place_of(self, name: str) -> int:
        return self._place.get(name, self._width - 1)
