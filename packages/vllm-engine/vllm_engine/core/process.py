"""The engine core as a process of its own: ``python -m vllm_engine.core.process``, started by ``ProcessClient``.

The parent writes one ``Launch`` message to standard input and keeps that pipe open for as long as it lives. When the
pipe closes, however the parent ended, this process ends too: no orphan survives a ``kill -9``. Requests and outputs
go over a ZMQ socket in a folder that only this user can enter; messages are msgpack of the types in ``messages``.
"""

import os
import shutil
import signal
import struct
import sys
import threading
from pathlib import Path

import msgspec
import zmq

from vllm_engine.config import EngineConfig
from vllm_engine.core.stacks import offer_stacks
from vllm_engine.errors import ConfigError
from vllm_engine.logging import configure_logging, get_logger, startup_phase
from vllm_engine.messages import EngineFailed, FromCore, ToCore

logger = get_logger("vllm_engine.core.process")  # not __name__, which is "__main__" in a program

LENGTH = struct.Struct("<I")
"""Length in bytes of the launch message, ahead of it on the pipe."""


class Launch(msgspec.Struct, frozen=True):
    """All that the engine process needs to know at its start.

    ``socket_path`` is a UNIX socket in a private folder; ``log_config`` is how the parent logs, see
    ``logging_in_force``.
    """

    config: EngineConfig
    model_path: str
    socket_path: str
    log_config: str | None = None


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
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.set_hwm(0)
    socket.connect(f"ipc://{launch.socket_path}")
    encoder = msgspec.msgpack.Encoder()
    decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)

    def receive(*, block: bool) -> ToCore | None:
        if not socket.poll(None if block else 0):
            return None
        return decoder.decode(socket.recv())

    def send(message: FromCore) -> None:
        socket.send(encoder.encode(message))

    try:
        configure_logging(config=launch.log_config)
        # Torch comes in only here, so that a broken launch fails before its import.
        with startup_phase(logger, "engine imports", {}):
            from vllm_engine.core.engine_core import EngineCore
            from vllm_engine.core.loop import run_core

        core = EngineCore(launch.config, Path(launch.model_path))
        send(core.ready)
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
        socket.close()
        context.term()


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
