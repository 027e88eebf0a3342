"""Threads for what would hold up the event loop: tokenizing long prompts, rendering long conversations."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vllm_engine.errors import EngineDead

T = TypeVar("T")

HUGE = 1 << 18
"""Characters or tokens, from which on work may take a second. A few such jobs would stop all that is only long."""


class RendererThreads:
    """At most ``count`` threads, each made when it is first needed; what comes beyond that waits for its turn.

    Huge work has one more thread, and waits for its like only.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="renderer")
        self._for_huge = ThreadPoolExecutor(1, thread_name_prefix="renderer-huge")
        self._closed = False

    async def run(self, work: Callable[[], T], *, size: int = 0) -> T:
        """The result of ``work``, done in one of the threads. Cancelling this takes waiting work back.

        ``size``: characters or tokens that it is about.

        Raises:
            EngineDead: when the threads are closed before its turn.
        """
        self._check_open()
        try:
            pool = self._for_huge if size >= HUGE else self._pool
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # nobody wants to end the caller: the work was taken back here
                self._check_open()
            raise

    def close(self) -> None:
        """Start nothing more; what runs now ends by itself."""
        self._closed = True
        for pool in (self._pool, self._for_huge):
            pool.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the engine is closed")
