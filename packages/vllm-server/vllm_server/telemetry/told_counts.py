"""What each of several processes has told of its counts, in memory that outlives it.

A counter that falls looks like a restart to who reads it, and all rates of that moment are wrong. So what was once on a
page stays on all that follow, though the process is killed that has counted it: its successor goes on from there.
"""

import mmap
import os

import msgspec

from vllm_server.telemetry.snapshot import Family, Snapshot, decode, encode

_SLOT_BYTES = 4 << 20
"""Most bytes of a snapshot; a few dozen kilobytes are used, and memory that nobody has written to costs nothing."""
_CELL_BYTES = 8
_READINGS = 3
"""A snapshot that is replaced twice while it is read is read again."""


class ToldCounts:
    """A row for each process, which it alone writes, and all read.

    A row has two places: the new snapshot is written where the old one is not, and then a single cell says where it is.
    So who dies in the midst of writing leaves the old one.
    """

    def __init__(self, file: int, rows: int, own: int) -> None:
        """
        Args:
            file: descriptor of ``create``.
            rows: number of processes.
            own: the row of this one.
        """
        self._memory = mmap.mmap(file, _size(rows))
        self._places = memoryview(self._memory)[: rows * _CELL_BYTES].cast("q")  # length * 2 + slot
        self._rows = rows
        self._own = own

    @staticmethod
    def create(rows: int) -> int:
        """Memory full of zeros, as a file without a name: it goes with the last process that has it."""
        file = os.memfd_create("vllm-told-counts")
        os.ftruncate(file, _size(rows))
        return file

    def keep(self, snapshot: Snapshot) -> None:
        """Remember what of a snapshot of this process must never fall."""
        data = encode(lasting(snapshot))
        if len(data) > _SLOT_BYTES:
            return
        slot = 1 - self._places[self._own] % 2
        start = self._start(self._own, slot)
        self._memory[start : start + len(data)] = data
        self._places[self._own] = len(data) * 2 + slot

    def of(self, row: int) -> Snapshot:
        """What the process of a row, or the one before it, has kept last."""
        for _ in range(_READINGS):
            length, slot = divmod(self._places[row], 2)
            start = self._start(row, slot)
            if not length:
                break
            try:
                return decode(self._memory[start : start + length])
            except msgspec.MsgspecError:
                continue
        return Snapshot(0.0, [])

    def _start(self, row: int, slot: int) -> int:
        return mmap.PAGESIZE * _pages(self._rows) + (2 * row + slot) * _SLOT_BYTES


def lasting(snapshot: Snapshot) -> Snapshot:
    """What a process has counted itself. What the engine counts, others know; gauges end with their process."""
    return Snapshot(0.0, [family for family in snapshot.families if _lasts(family)])


def _lasts(family: Family) -> bool:
    return family.combine == "sum" and family.kind in ("counter", "histogram", "summary")


def _pages(rows: int) -> int:
    return -(-rows * _CELL_BYTES // mmap.PAGESIZE)


def _size(rows: int) -> int:
    return mmap.PAGESIZE * _pages(rows) + 2 * rows * _SLOT_BYTES
