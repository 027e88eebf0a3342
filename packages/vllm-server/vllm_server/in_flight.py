"""The requests that run now: each ends early when its client goes away or the server stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from vllm_server.errors import ShuttingDown

T = TypeVar("T")

_SHUTTING_DOWN = "The server is shutting down."


class InFlight:
    """All running requests of the server, and the door for new ones."""

    def __init__(self) -> None:
        self.draining = False
        self.aborting = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def check_open(self) -> None:
        """Raises ``ShuttingDown`` once no new requests are taken."""
        if self.draining:
            raise ShuttingDown(_SHUTTING_DOWN)

    def drain(self) -> None:
        """Take no new requests; those that run go on."""
        self.draining = True

    def abort_all(self) -> None:
        """Take no new requests, and end those that run with ``ShuttingDown``."""
        self.draining = self.aborting = True
        for task in self._tasks:
            task.cancel()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let ``work`` run on by itself, as a request whose client need not wait. ``abort_all`` cancels it.

        Raises ``ShuttingDown`` when that has been called.
        """
        if self.aborting:
            work.close()
            raise ShuttingDown(_SHUTTING_DOWN)
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` while listening on ``receive``, whose request body has been read.

        The work is cancelled, and its cleanup awaited, as soon as the client disconnects or ``abort_all`` is called.
        It runs in the caller's task, so that a request that comes with many others goes to the engine at once: in a
        task of its own it would wait until all of them have come as far.

        Raises:
            ClientDisconnect: the client went away.
            ShuttingDown: the server stopped and the work did not answer by itself, or was to begin after that.
        """
        task = asyncio.current_task()
        if self.aborting or task is None:
            work.close()
            raise ShuttingDown(_SHUTTING_DOWN)
        caller_cancelled = task.cancelling()
        is_gone = False

        def leave(_: object) -> None:
            nonlocal is_gone
            is_gone = True
            task.cancel()

        watcher = asyncio.get_running_loop().create_task(_disconnected(receive))
        watcher.add_done_callback(leave)
        self._tasks.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if is_gone:
                raise ClientDisconnect from None
            if self.aborting:
                raise ShuttingDown(_SHUTTING_DOWN) from None
            raise
        finally:
            watcher.remove_done_callback(leave)
            watcher.cancel()
            self._tasks.discard(task)
            if is_gone or self.aborting:
                while task.cancelling() > caller_cancelled:  # was meant for the work
                    task.uncancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
