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

SOCKET_NAME = "core.sock"

PROCESS_POLL_SECONDS = 0.2
"""How often a silent engine process is looked after."""
SHUTDOWN_SECONDS = 2.0
"""How long an engine process may take to end when it is asked to."""
PIPE_SECONDS = 1.0
"""How long it may then take to notice that its pipe is closed, before it is killed."""
THREAD_SECONDS = 30.0
"""How long an engine thread is waited for: it cannot be killed, and may be loading or in a step."""
MAX_SOCKET_PATH_BYTES = 107
"""Longest name of a UNIX socket (``sun_path`` of ``sockaddr_un``, less its terminator)."""


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
        ready = self._ready
        return self._death is None and ready is not None and ready.done() and not ready.cancelled()

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

    def close(self) -> None:
        """End the core, and wait until it has ended. May be called again."""
        self._ask_to_end()
        self._wait_for_end()
        self._clean_up()

    async def aclose(self) -> None:
        """``close``, with the event loop free while the core ends."""
        self._ask_to_end()
        try:
            await asyncio.to_thread(self._wait_for_end)
        finally:
            self._clean_up()

    @abstractmethod
    async def start(self) -> EngineReady:
        """Wait for the model to be loaded. Raises ``ConfigError`` or ``EngineDead`` when that fails."""

    @abstractmethod
    def _ask_to_end(self) -> None:
        """Tell the core to end, and everyone who waits that it will. Does not wait."""

    @abstractmethod
    def _wait_for_end(self) -> None:
        """Block until the core has ended. Runs in any thread."""

    @abstractmethod
    def _clean_up(self) -> None:
        """Give back what is left when the core has ended. Does not wait."""

    def _begin(self) -> "asyncio.Future[EngineReady]":
        """What ``start`` waits for. Raises ``EngineDead`` when there is nothing to start any more."""
        if self._death is not None:
            raise self._death
        self._ready = asyncio.get_running_loop().create_future()
        return self._ready

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
            self._ready.set_exception(ConfigError(failure.message, field=failure.config_field or None))
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
        ready = self._begin()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._thread.start()
        return await ready

    def _run(self) -> None:
        from vllm_engine.core.engine_core import EngineCore
        from vllm_engine.core.loop import run_core

        try:
            core = EngineCore(self._config, self._model_path)
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


class ProcessClient(AsyncClient):
    """The core in a process of its own, which ends when this one does.

    The process starts on construction, so that it loads while the caller goes on with other things.
    """

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        super().__init__(config, model_path)
        self._folder = _private_folder()
        self.socket_path = os.path.join(self._folder, SOCKET_NAME)
        try:
            self._process = _launch(Launch(config, str(model_path), self.socket_path))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._socket: zmq.asyncio.Socket | None = None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._was_asked = False
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

        ready = self._begin()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        self._socket.bind(f"ipc://{self.socket_path}")
        self._tasks = [asyncio.create_task(self._read(self._socket)), asyncio.create_task(self._watch())]
        return await ready

    async def _read(self, socket: "zmq.asyncio.Socket") -> None:
        try:
            while True:
                self._receive(self._decoder.decode(await socket.recv()))
        except Exception as error:
            logger.exception("a message of the engine process cannot be read")
            self._die(f"a message of the engine process cannot be read ({type(error).__name__})")

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

    def _ask_to_end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.is_alive:
            with contextlib.suppress(EngineDead):
                self._send(Shutdown())
                self._was_asked = True
        self._die("the engine is closed")

    def _wait_for_end(self) -> None:
        """By word, by the pipe, by force."""
        if self._was_asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SHUTDOWN_SECONDS)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # the process takes that as the death of its parent
        try:
            self._process.wait(PIPE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _clean_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> str:
    """A new folder for the socket, of mode 0700: no other user reaches it. Raises ``ConfigError`` naming ``TMPDIR``."""
    try:
        folder = tempfile.mkdtemp(prefix="vllm-")
    except OSError as error:
        raise ConfigError(f"there is no place for the engine's socket ({error}): set TMPDIR", field="TMPDIR") from error
    if len(os.fsencode(os.path.join(folder, SOCKET_NAME))) > MAX_SOCKET_PATH_BYTES:
        os.rmdir(folder)
        raise ConfigError(f"{tempfile.gettempdir()} is too long a path for a socket: set TMPDIR", field="TMPDIR")
    return folder


def _launch(launch: Launch) -> "subprocess.Popen[bytes]":
    """Start the engine process and hand it its settings through the pipe that also tells it that we live.

    A process that ends before it has read them is found out by who waits for it. Raises ``EngineDead`` when there is
    none.
    """
    message = msgspec.msgpack.encode(launch)
    try:
        process = subprocess.Popen([sys.executable, "-m", "vllm_engine.core.process"], stdin=subprocess.PIPE)
    except OSError as error:
        raise EngineDead(f"the engine process cannot be started: {error}") from error
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(LENGTH.pack(len(message)) + message)
            process.stdin.flush()
    return process
