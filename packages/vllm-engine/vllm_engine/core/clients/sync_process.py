"""The engine core in a process of its own, for a caller without an event loop."""

import asyncio
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.process import ProcessClient
from vllm_engine.errors import EngineDead
from vllm_engine.messages import EngineOutputs, EngineReady, EngineRequest

T = TypeVar("T")


class SyncProcessClient:
    """A ``ProcessClient`` whose event loop runs in a thread; ``step`` waits for the outputs of a step. For ``LLM``."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        """Start the process and load the model. Raises ``ConfigError`` or ``EngineDead`` when that fails."""
        self._client = ProcessClient(config, model_path, streams=False)
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._loop.run_forever, name="engine-client", daemon=True
        )
        self._thread.start()
        try:
            self.ready: EngineReady = self._wait(self._client.start())
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the engine core."""
        return self._client.pid

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests. Raises ``EngineDead`` when nobody would take them."""
        self._wait(_as_coroutine(self._client.add, requests))

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids, and any after a death, are ignored."""
        if self._thread is not None:
            self._wait(_as_coroutine(self._client.abort, request_ids))

    def step(self) -> EngineOutputs:
        """Wait for the outputs of the next step. Raises ``EngineDead`` when there will be none."""
        return self._wait(self._client.next_outputs())

    def has_unfinished(self) -> bool:
        """Whether a step may still come. Which requests are unfinished, the caller knows."""
        return self._thread is not None and self._client.is_alive

    def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core. Raises ``RuntimeError`` with its message when it fails."""
        return self._wait(self._client.call(method, *args))

    def close(self) -> None:
        """End the process. May be called again."""
        thread, self._thread = self._thread, None
        if thread is None or sys.is_finalizing():
            return  # at the interpreter's end no thread runs any more, and the process ends with its pipe
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._thread is None:
            work.close()
            raise EngineDead("the engine is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C nobody is there who would take the outputs of a next step from it
            raise


async def _as_coroutine(function: Any, *args: Any) -> Any:
    """The client's methods run in its event loop only."""
    return function(*args)
