"""The engine core in a process of its own. The other end is ``core.process``."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.attached import CoreAddress
from vllm_engine.core.clients.cpu_time import process_cpu_seconds
from vllm_engine.core.clients.socket_client import PROCESS_POLL_SECONDS, SocketClient
from vllm_engine.core.process import LENGTH, Launch
from vllm_engine.core.stacks import stacks_of
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import logging_in_force
from vllm_engine.messages import ClientGone, Shutdown

if TYPE_CHECKING:
    import zmq

SOCKET_NAME = "core.sock"
CLIENTS_NAME = "clients.sock"
"""Where clients beside the parent connect."""
SHUTDOWN_SECONDS = 2.0
"""How long an engine process may take to end when it is asked to."""
PIPE_SECONDS = 1.0
"""How long it may then take to notice that its pipe is closed, before it is killed."""
MAX_SOCKET_PATH_BYTES = 107
"""Longest name of a UNIX socket (``sun_path`` of ``sockaddr_un``, less its terminator)."""


class ProcessClient(SocketClient):
    """The core in a process of its own, which ends when this one does.

    The process starts on construction, so that it loads while the caller goes on with other things.
    """

    def __init__(
        self, config: EngineConfig, model_path: Path, *, with_others: bool = False, streams: bool = True
    ) -> None:
        """``with_others`` lets processes that have an ``address`` be clients of the core, too. ``streams`` as in
        ``EngineCore``.
        """
        super().__init__(config, model_path)
        self.folder = _private_folder()
        """A folder that no other user can enter; it goes with the core."""
        self.socket_path = os.path.join(self.folder, SOCKET_NAME)
        self._clients_path = os.path.join(self.folder, CLIENTS_NAME) if with_others else None
        try:
            self._process = _launch(
                Launch(config, str(model_path), self.socket_path, logging_in_force(), self._clients_path, streams)
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._was_asked = False

    @property
    def pid(self) -> int:
        """Process id of the engine core."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the core can take requests."""
        return super().is_alive and self._process.poll() is None

    def cpu_seconds(self) -> float | None:
        """Processor time of all threads of the process; None where the system does not tell."""
        return process_cpu_seconds(self.pid)

    async def stacks(self) -> str:
        """Where the threads of the process are, or why that is not known."""
        return await stacks_of(self.pid, self.folder)

    def address(self, name: str, *, tells_stacks: bool) -> CoreAddress:
        """For another client. Its name is one that none has had; one of them should tell the stacks of a stall."""
        if self._clients_path is None:
            raise ValueError("this core has no other clients")
        return CoreAddress(
            self._clients_path, self.pid, name, str(self._model_path), self.folder if tells_stacks else ""
        )

    def forget(self, name: str) -> None:
        """The process of another client has ended: its requests end at once. Ignored after a death."""
        if self._death is None:
            self._send(ClientGone(name))

    def _connect(self) -> "zmq.Socket[bytes]":
        import zmq

        socket = self._open(zmq.PAIR)
        socket.bind(f"ipc://{self.socket_path}")
        return socket

    async def _end_of_core(self) -> str:
        while self._process.poll() is None:
            await asyncio.sleep(PROCESS_POLL_SECONDS)
        return f"the engine process ended with code {self._process.returncode}"

    def _ask_to_end(self) -> None:
        self._stop()
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
        self._close_socket()
        shutil.rmtree(self.folder, ignore_errors=True)


def _private_folder() -> str:
    """A new folder for the socket, of mode 0700: no other user reaches it.

    It is made in ``VLLM_RPC_BASE_PATH``, else where temporary files are. Raises ``ConfigError`` naming the variable
    that decides the place.
    """
    base: str | None = envs.get("VLLM_RPC_BASE_PATH")
    variable = "VLLM_RPC_BASE_PATH" if base else "TMPDIR"
    try:
        folder = os.path.abspath(tempfile.mkdtemp(prefix="vllm-", dir=base))
    except OSError as error:
        raise ConfigError(
            f"there is no place for the engine's socket ({error}): set {variable}", field=variable
        ) from error
    if len(os.fsencode(os.path.join(folder, CLIENTS_NAME))) > MAX_SOCKET_PATH_BYTES:
        os.rmdir(folder)
        raise ConfigError(
            f"{base or tempfile.gettempdir()} is too long a path for a socket: set {variable}", field=variable
        )
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
