"""The engine core as a process of its own: ``python -m vllm_engine.core.process``, started by ``ProcessClient``.

The parent writes one ``Launch`` message to standard input and keeps that pipe open for as long as it lives. When the
pipe closes, however the parent ended, this process ends too: no orphan survives a ``kill -9``. Requests and outputs
go over a ZMQ socket in a folder that only this user can enter; messages are msgpack of the types in ``messages``.
Where the launch names a ``clients_path``, other processes (``AttachedClient``) are clients, too: see ``core.routing``.
"""

import gc
import os
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from vllm_engine.config import EngineConfig
from vllm_engine.core.routing import PARENT, Routing
from vllm_engine.core.stacks import offer_stacks
from vllm_engine.errors import ConfigError
from vllm_engine.logging import configure_logging, get_logger, startup_phase
from vllm_engine.messages import EngineFailed, FromCore, ToCore

if TYPE_CHECKING:
    from vllm_engine.core.loop import Receive

logger = get_logger("vllm_engine.core.process")  # not __name__, which is "__main__" in a program

LENGTH = struct.Struct("<I")
"""Length in bytes of the launch message, ahead of it on the pipe."""
LINGER_MS = 2000
"""How long the last messages get to leave when the core ends."""

Send = Callable[[FromCore], None]


class Launch(msgspec.Struct, frozen=True):
    """All that the engine process needs to know at its start.

    ``socket_path`` is a UNIX socket in a private folder; ``log_config`` is how the parent logs, see
    ``logging_in_force``. ``clients_path`` is where clients beside the parent connect; None where there are none.
    ``streams``: whether tokens are handed on as they come.
    """

    config: EngineConfig
    model_path: str
    socket_path: str
    log_config: str | None = None
    clients_path: str | None = None
    streams: bool = True


def read_launch(pipe: int) -> Launch:
    """Read the launch message from a file descriptor. Raises ``EOFError`` when the parent is gone already."""
    (length,) = LENGTH.unpack(_read_exactly(pipe, LENGTH.size))
    return msgspec.msgpack.decode(_read_exactly(pipe, length), type=Launch)


def _read_exactly(pipe: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(pipe, count - len(data))
        if not part:
            raise EOFError("the parent closed the pipe before the launch message was complete")
        data += part
    return data


def _die_with_parent(pipe: int, socket_path: str) -> None:
    """End this process as soon as the parent's end of the pipe is closed."""

    def wait() -> None:
        # The descriptor and not sys.stdin: a buffered reader in a daemon thread blocks the interpreter's exit.
        while os.read(pipe, 4096):
            pass
        shutil.rmtree(os.path.dirname(socket_path), ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def serve(launch: Launch) -> int:
    """Connect, load, serve. Returns the exit code."""
    context = zmq.Context()
    parent = _socket(context, zmq.PAIR)
    parent.connect(f"ipc://{launch.socket_path}")
    receive, send = _to_parent(parent)
    try:
        if launch.clients_path is not None:
            clients = _socket(context, zmq.ROUTER)
            clients.bind(f"ipc://{launch.clients_path}")
            receive, send = _to_all(parent, clients)
        configure_logging(config=launch.log_config)
        # Torch comes in only here, so that a broken launch fails before its import.
        with startup_phase(logger, "engine imports", {}):
            from vllm_engine.core.engine_core import EngineCore
            from vllm_engine.core.loop import run_core
            from vllm_engine.execution.step_threads import compute_beside_frontend

        compute_beside_frontend()
        core = EngineCore(launch.config, Path(launch.model_path), streams=launch.streams)
        send(core.ready)
        gc.freeze()  # a collection of all objects would stop every stream to go through those of torch again
        run_core(core, receive, send)
        core.close()
        return 0
    except ConfigError as error:
        send(EngineFailed.of(error))
        return 2
    except Exception as error:
        logger.exception("the engine core ends")
        send(EngineFailed.of(error))
        return 1
    finally:
        context.destroy(linger=LINGER_MS)


def _socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.set_hwm(0)
    return socket


def _to_parent(parent: "zmq.Socket[bytes]") -> tuple["Receive", Send]:
    """How the core talks to the one client that it has."""
    encoder = msgspec.msgpack.Encoder()
    decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)

    def receive(*, block: bool) -> ToCore | None:
        if not parent.poll(None if block else 0):
            return None
        return decoder.decode(parent.recv())

    def send(message: FromCore) -> None:
        parent.send(encoder.encode(message))

    return receive, send


def _to_all(parent: "zmq.Socket[bytes]", clients: "zmq.Socket[bytes]") -> tuple["Receive", Send]:
    """How the core talks to its parent and to clients beside it, each by the name that is its routing id."""
    encoder = msgspec.msgpack.Encoder()
    decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
    poller = zmq.Poller()
    poller.register(parent, zmq.POLLIN)
    poller.register(clients, zmq.POLLIN)

    def send_to(client: str, message: FromCore) -> None:
        data = encoder.encode(message)
        if client == PARENT:
            parent.send(data)
        else:
            clients.send_multipart((client.encode(), data))  # dropped where nobody of that name is connected

    routing = Routing(send_to)

    def receive(*, block: bool) -> ToCore | None:
        while True:
            waiting = dict(poller.poll(None if block else 0))
            if not waiting:
                return None
            name, data = (b"", parent.recv()) if parent in waiting else clients.recv_multipart()
            message = routing.take(name.decode(), decoder.decode(data))
            if message is not None:
                return message

    return receive, routing.give


def main() -> int:
    """Entry point of the engine process."""
    # The terminal sends Ctrl-C to the whole group: the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = sys.stdin.fileno()
    launch = read_launch(pipe)
    _die_with_parent(pipe, launch.socket_path)
    offer_stacks(os.path.dirname(launch.socket_path))
    return serve(launch)


if __name__ == "__main__":
    sys.exit(main())
