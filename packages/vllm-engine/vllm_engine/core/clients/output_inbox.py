"""``OutputInbox``: what came from a core, in order."""

import asyncio

from vllm_engine.messages import EngineOutputs


class OutputInbox(asyncio.Queue[EngineOutputs | None]):
    """A queue of steps, None being the end, on which one can also wait without taking anything."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._arrival: asyncio.Future[None] | None = None

    def _put(self, item: EngineOutputs | None) -> None:
        super()._put(item)
        self._arrive()

    async def wait(self, seconds: float) -> None:
        """Until there is something to take, or for so long. One may wait at a time."""
        if not self.empty():
            return
        loop = asyncio.get_running_loop()
        self._arrival = loop.create_future()
        timer = loop.call_later(seconds, self._arrive)
        try:
            await self._arrival
        finally:
            timer.cancel()
            self._arrival = None

    def _arrive(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
