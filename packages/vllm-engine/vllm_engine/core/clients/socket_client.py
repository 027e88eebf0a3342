"""What the clients share that talk to a core over a socket."""

import asyncio
import contextlib
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.base import AsyncClient
from vllm_engine.errors import EngineDead
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineReady, FromCore, ToCore

if TYPE_CHECKING:
    import zmq

logger = get_logger(__name__)

PROCESS_POLL_SECONDS = 0.2
"""How often a core's process is looked after where nobody tells of its end."""
LAST_WORDS_SECONDS = 0.05
"""How long messages of a process that has ended may still be on the way."""


class SocketClient(AsyncClient):
    """Messages as msgpack over a ZMQ socket, which ``_connect`` makes, and an eye on the core's process.

    The event loop watches the socket's descriptor. That tells of news once, so whoever has used the socket looks for
    more. ``zmq.asyncio`` does so with a future for each message, which takes several times as long.
    """

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        super().__init__(config, model_path)
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """That in which the socket is read, while it is."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)

    async def start(self) -> EngineReady:
        """Wait for the model to be loaded. Raises ``ConfigError`` or ``EngineDead`` when that fails."""
        ready = self._begin()
        socket = self._connect()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(socket, self._read, socket)
        self._loop.call_soon(self._read, socket)
        self._watcher = asyncio.create_task(self._watch())
        return await ready

    @abstractmethod
    def _connect(self) -> "zmq.Socket[bytes]":
        """Open the socket to the core. Does not wait."""

    @abstractmethod
    async def _end_of_core(self) -> str:
        """Wait until the core's process has ended. Returns a sentence that says so."""

    def _open(self, kind: int) -> "zmq.Socket[bytes]":
        """A new socket, without limits to what waits in it; it is neither bound nor connected yet."""
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        return self._socket

    def _read(self, socket: "zmq.Socket[bytes]") -> None:
        """Take in all messages that are here."""
        import zmq

        try:
            while self._loop is not None:
                self._receive(self._decoder.decode(socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        except Exception as error:
            logger.exception("a message of the engine process cannot be read")
            self._stop_reading()
            self._die(f"a message of the engine process cannot be read ({type(error).__name__})")

    async def _watch(self) -> None:
        news = await self._end_of_core()
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self._die(news)

    def _send(self, message: ToCore) -> None:
        if self._death is not None:
            raise self._death
        if self._socket is None:
            raise EngineDead("the engine is not started")
        import zmq

        with contextlib.suppress(zmq.Again):  # nobody is at the other end any more, as will soon be found out
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        if self._loop is not None and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._read, self._socket)

    def _stop_reading(self) -> None:
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    def _stop(self) -> None:
        """Neither read nor watch any more."""
        self._stop_reading()
        if self._watcher is not None:
            self._watcher.cancel()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()
