"""How much of a kind of work one turn of the event loop may hold, so that all others have their turn, too."""

import asyncio
from collections import deque


class TurnShare:
    """So much is done in a turn; what comes beyond that waits for one of the next turns, in the order of its coming.

    A request of a thousand prompts, each quick by itself, would otherwise stop every stream for seconds.
    """

    def __init__(self, amount: int) -> None:
        """``amount``: the most for one turn. What alone is more than that has a turn for itself."""
        self._amount = amount
        self._left = amount
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int) -> None:
        """Return when there is room for so much. Nothing counts as 1: a full share says that none is renewed."""
        amount = max(1, amount)
        if self._left == self._amount:
            asyncio.get_running_loop().call_soon(self._renew)
        elif self._waiting or amount > self._left:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            await turn
            return
        self._left -= amount

    def _renew(self) -> None:
        self._left = self._amount
        while self._waiting and (self._waiting[0][0] <= self._left or self._left == self._amount):
            amount, turn = self._waiting.popleft()
            if not turn.done():  # cancelled, else
                turn.set_result(None)
                self._left -= amount
        if self._left < self._amount:
            asyncio.get_running_loop().call_soon(self._renew)
