"""The items that are still to be sent, and when the next is due."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from vllm_bench.workload.item import WorkItem


class Due(NamedTuple):
    """An item whose moment has come."""

    item: WorkItem
    arrival: float
    """That moment, in seconds of ``time.perf_counter``."""


class Schedule:
    """Hands out ``items`` in their order. An item without an offset is due from ``began`` on; after ``stop`` none is.

    Args:
        began: seconds of ``time.perf_counter``, from which the offsets count.
        stop: likewise.
    """

    def __init__(self, items: Iterator[WorkItem], began: float, stop: float = math.inf) -> None:
        self._items = items
        self._began = began
        self._stop = stop
        self._next = next(items, None)

    def next_arrival(self) -> float | None:
        """When the next item is due; None when there is none, or not before the end."""
        if self._next is None:
            return None
        arrival = self._began + (self._next.offset or 0.0)
        return arrival if arrival < self._stop else None

    def over(self, moment: float) -> bool:
        """Whether nothing is due at ``moment`` any more, not even the next turn of a conversation."""
        return moment >= self._stop

    def take(self, now: float) -> Due | None:
        """The next item, if it is due at ``now``. From ``stop`` on there is nothing more."""
        if now >= self._stop:
            self._next = None
        arrival = self.next_arrival()
        if self._next is None or arrival is None or arrival > now:
            return None
        due = Due(self._next, arrival)
        self._next = next(self._items, None)
        return due
