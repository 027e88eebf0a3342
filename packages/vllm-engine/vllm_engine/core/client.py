"""Three ways to hold an engine core: in this call stack, in a thread, in a process. All speak the same messages."""

import asyncio
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_engine.config import EngineConfig
from vllm_engine.core.process import LENGTH, Launch
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import get_logger
from vllm_engine.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FromCore,
    RpcCall,
    RpcResult,
    Shutdown,
    ToCore,
)

if TYPE_CHECKING:
    import zmq.asyncio

    from vllm_engine.core.engine_core import EngineCore

logger = get_logger(__name__)

PROCESS_POLL_SECONDS = 0.2
"""How often a silent engine process is looked after."""


class InprocClient:
    """The core in the caller's own thread: ``step`` computes. For ``LLM``."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        """Load the model. Raises ``ConfigError`` for settings that cannot be honoured."""
        from vllm_engine.core.engine_core import EngineCore

        self._core: EngineCore | None = EngineCore(config, model_path)
        self.ready: EngineReady = self._core.ready

    @property
    def core(self) -> "EngineCore":
        """The core. Raises ``EngineDead`` after ``close``."""
        if self._core is None:
            raise EngineDead("the engine is closed")
        return self._core

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests."""
        self.core.add(requests)

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids are ignored."""
        self.core.abort(request_ids)

    def step(self) -> EngineOutputs:
        """Compute one batch."""
        return self.core.step()

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything to do."""
        return self.core.has_unfinished()

    def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core."""
        return self.core.call(method, list(args))

    def close(self) -> None:
        """Release the model and the cache. May be called again."""
        if self._core is not None:
            self._core.close()
            self._core = None


class AsyncClient(ABC):
    """What the two asynchronous clients share: outputs in order, answers to calls, and the news of a death."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self._outputs: asyncio.Queue[EngineOutputs | None] = asyncio.Queue()
        self._ready: asyncio.Future[EngineReady] | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call_id = 0
        self._death: EngineDead | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the core can take requests."""
        return self._death is None and self._ready is not None and self._ready.done()

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests. Raises ``EngineDead`` when nobody would take them."""
        self._send(AddRequests(requests))

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids, and any after a death, are ignored."""
        if self._death is None:
            self._send(AbortRequests(request_ids))

    async def next_outputs(self) -> EngineOutputs:
        """Wait for the outputs of the next step. Raises ``EngineDead`` when there will be none."""
        outputs = await self._outputs.get()
        if outputs is None:
            self._outputs.put_nowait(None)  # whoever waits next learns it too
            raise self._death or EngineDead("the engine is closed")
        return outputs

    async def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core. Raises ``RuntimeError`` with its message when it fails."""
        self._next_call_id += 1
        call_id = self._next_call_id
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(RpcCall(call_id, method, list(args)))
            return await future
        finally:
            self._calls.pop(call_id, None)

    @abstractmethod
    def _send(self, message: ToCore) -> None:
        """Hand a message to the core without waiting. Raises ``EngineDead`` when the core is gone."""

    def _receive(self, message: FromCore) -> None:
        """Sort a message from the core. Runs in the event loop."""
        if isinstance(message, EngineOutputs):
            self._outputs.put_nowait(message)
        elif isinstance(message, RpcResult):
            future = self._calls.get(message.call_id)
            if future is not None and not future.done():
                if message.error is None:
                    future.set_result(message.value)
                else:
                    future.set_exception(RuntimeError(message.error))
        elif isinstance(message, EngineReady):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
        else:
            self._on_failed(message)

    def _on_failed(self, failure: EngineFailed) -> None:
        if self._ready is not None and not self._ready.done() and failure.config_field is not None:
            self._ready.set_exception(ConfigError(failure.message, field=failure.config_field))
        self._die(failure.message)

    def _die(self, message: str) -> None:
        """Tell everyone who waits that the core is gone. The first message stands."""
        if self._death is not None:
            return
        self._death = EngineDead(message)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineDead(message))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDead(message))
        self._outputs.put_nowait(None)


class ThreadClient(AsyncClient):
    """The core in a thread of this process."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        super().__init__(config, model_path)
        self._inbox: queue.SimpleQueue[ToCore] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> EngineReady:
        """Load the model. Raises ``ConfigError`` or ``EngineDead`` when that fails."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._thread.start()
        return await self._ready

    def _run(self) -> None:
        from vllm_engine.core.engine_core import EngineCore
        from vllm_engine.core.loop import run_core

        try:
            core = EngineCore(self._config, self._model_path)
            self._post(core.ready)
            run_core(core, self._take, self._post)
            core.close()
        except ConfigError as error:
            self._post(EngineFailed(str(error), error.field or "configuration"))
        except Exception as error:
            logger.exception("the engine core ends")
            self._post(EngineFailed(f"{type(error).__name__}: {error}"))

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

    def close(self) -> None:
        """End the thread after the step that it is in. May be called again."""
        self._inbox.put(Shutdown())
        if self._thread is not None:
            self._thread.join(timeout=30)
        self._die("the engine is closed")


class ProcessClient(AsyncClient):
    """The core in a process of its own, which ends when this one does.

    The process starts on construction, so that it loads while the caller goes on with other things.
    """

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        super().__init__(config, model_path)
        self._folder = tempfile.mkdtemp(prefix="vllm-")  # mode 0700: no other user reaches the socket
        self.socket_path = os.path.join(self._folder, "core.sock")
        self._process = _launch(Launch(config, str(model_path), self.socket_path))
        self._socket: zmq.asyncio.Socket | None = None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)

    @property
    def pid(self) -> int:
        """Process id of the engine core."""
        return self._process.pid

    async def start(self) -> EngineReady:
        """Wait for the model to be loaded. Raises ``ConfigError`` or ``EngineDead`` when that fails."""
        import zmq
        import zmq.asyncio

        self._ready = asyncio.get_running_loop().create_future()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        self._socket.bind(f"ipc://{self.socket_path}")
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]
        return await self._ready

    async def _read(self) -> None:
        if self._socket is None:
            return
        while True:
            self._receive(self._decoder.decode(await self._socket.recv()))

    async def _watch(self) -> None:
        while self._process.poll() is None:
            await asyncio.sleep(PROCESS_POLL_SECONDS)
        await asyncio.sleep(0.05)  # its last words may still be on the way
        self._die(f"the engine process ended with code {self._process.returncode}")

    def _send(self, message: ToCore) -> None:
        if self._death is not None:
            raise self._death
        if self._socket is None:
            raise EngineDead("the engine is not started")
        # Goes out at once or, without a limit, into the socket's queue; the future is of no interest.
        self._socket.send(self._encoder.encode(message))

    def close(self) -> None:
        """End the process, by force after two seconds. May be called again."""
        for task in self._tasks:
            task.cancel()
        if self.is_alive:
            with contextlib.suppress(EngineDead):
                self._send(Shutdown())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        if self._process.stdin is not None:
            self._process.stdin.close()  # the process takes that as the death of its parent
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._die("the engine is closed")
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


def _launch(launch: Launch) -> "subprocess.Popen[bytes]":
    """Start the engine process and hand it its settings through the pipe that also tells it that we live."""
    process = subprocess.Popen([sys.executable, "-m", "vllm_engine.core.process"], stdin=subprocess.PIPE)
    message = msgspec.msgpack.encode(launch)
    if process.stdin is None:
        raise EngineDead("the engine process has no input pipe")
    process.stdin.write(LENGTH.pack(len(message)) + message)
    process.stdin.flush()
    return process
