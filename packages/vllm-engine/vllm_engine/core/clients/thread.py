"""The engine core in a thread of this process."""

import asyncio
import contextlib
import queue
import threading
import time
from pathlib import Path

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.base import AsyncClient
from vllm_engine.core.clients.cpu_time import clock_seconds
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_engine.messages import (
    EngineFailed,
    EngineReady,
    FromCore,
    Shutdown,
    ToCore,
)

logger = get_logger(__name__)

THREAD_SECONDS = 30.0
"""How long an engine thread is waited for: it cannot be killed, and may be loading or in a step."""


class ThreadClient(AsyncClient):
    """The core in a thread of this process."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        super().__init__(config, model_path)
        self._inbox: queue.SimpleQueue[ToCore] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cpu_clock: int | None = None

    def cpu_seconds(self) -> float | None:
        """Processor time of the thread; None where the system does not tell."""
        return clock_seconds(self._cpu_clock)

    async def stacks(self) -> str:
        """Nothing: it is a thread of this process."""
        return ""

    async def start(self) -> EngineReady:
        """Load the model. Raises ``ConfigError`` or ``EngineDead`` when that fails."""
        ready = self._begin()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._thread.start()
        return await ready

    def _run(self) -> None:
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        from vllm_engine.core.engine_core import EngineCore
        from vllm_engine.core.loop import run_core

        try:
            core = EngineCore(self._config, self._model_path, streams=True)
            self._post(core.ready)
            run_core(core, self._take, self._post)
            core.close()
        except BaseException as error:  # nobody else would hear of a SystemExit in a thread
            if not isinstance(error, ConfigError):
                logger.exception("the engine core ends")
            self._post(EngineFailed.of(error))

    def _take(self, *, block: bool) -> ToCore | None:
        try:
            return self._inbox.get(block=block)
        except queue.Empty:
            return None

    def _post(self, message: FromCore) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._receive, message)

    def _send(self, message: ToCore) -> None:
        if self._death is not None:
            raise self._death
        self._inbox.put(message)

    def _ask_to_end(self) -> None:
        self._inbox.put(Shutdown())
        self._die("the engine is closed")

    def _wait_for_end(self) -> None:
        """After the step that the thread is in, or when it has loaded."""
        if self._thread is not None:
            self._thread.join(THREAD_SECONDS)
            if self._thread.is_alive():
                logger.warning("the engine thread does not end: it is left behind")

    def _clean_up(self) -> None:
        pass
