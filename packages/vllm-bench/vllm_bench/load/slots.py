"""The places of requests under way, and the moments at which they became free."""

import asyncio
from collections import deque

ALWAYS = float("-inf")
"""The moment at which a place became free that nobody had before."""


class Slots:
    """At most ``limit`` places; None: no limit. Whoever waits first is served first."""

    def __init__(self, limit: int | None) -> None:
        self.limited = limit is not None
        self._free: deque[float] = deque([ALWAYS] * (limit or 0))
        self._waiting: deque[asyncio.Future[float]] = deque()

    async def take(self) -> float:
        """Wait for a place; returns the moment at which it became free: the reader may come to it later than that."""
        if not self.limited:
            return ALWAYS
        if self._free:
            return self._free.popleft()
        place: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        return await place

    def give_back(self, freed: float) -> None:
        """A place is free again, since that moment."""
        if not self.limited:
            return
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(freed)
                return
        self._free.append(freed)
