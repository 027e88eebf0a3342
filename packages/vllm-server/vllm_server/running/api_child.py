"""An API process, as seen by the process that has launched it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from vllm_engine.core.clients.cpu_time import process_cpu_seconds
from vllm_engine.core.clients.pulse import Pulse
from vllm_engine.errors import ConfigError, EngineDead
from vllm_server.running.channel import (
    LENGTH,
    ApiLaunch,
    Drained,
    Failed,
    FromApi,
    Listening,
    Ping,
    ToApi,
    packed,
)

POLL_SECONDS = 0.2
PREFIX = "VLLM_LOGGING_PREFIX"
HANG_SECONDS = 10.0
"""How long its event loop may answer nothing while the process uses no processor time: it is stopped, or waits."""
BUSY_SECONDS = 60.0
"""How long it may answer nothing although it computes."""


class ApiChild:
    """One API process: what it has told, and whether it has ended. ``on_change`` is called with each news."""

    def __init__(self, launch: ApiLaunch, on_change: Callable[[], None]) -> None:
        """Start the process. Raises ``EngineDead`` when that cannot be done."""
        self.index = launch.index
        self.name = launch.core.name
        self.listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
        self.drained = False
        self.exit_code: int | None = None
        self._on_change = on_change
        self._pulse: Pulse | None = None
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vllm_server.running.api_process"],
                    stdin=theirs.fileno(),
                    pass_fds=(launch.listener, launch.table, launch.told_counts),
                    env={**os.environ, PREFIX: f"{os.environ.get(PREFIX, '')}[api {launch.index}] "},
                )
            except OSError as error:
                self._socket.close()
                raise EngineDead(f"an API process cannot be started: {error}") from error
        self.tell(launch)
        self._task = asyncio.create_task(self._follow(), name=f"api-process-{launch.index}")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_done(self) -> bool:
        """Whether nothing runs in it any more."""
        return self.drained or self.exit_code is not None

    def tell(self, message: ToApi) -> None:
        """Send a message; one that is gone, or so stuck that it reads nothing, does not get it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(packed(message))

    def hangs(self) -> bool:
        """Whether its event loop has not run for too long. To be asked every ``LOOK_SECONDS`` of a ``Pulse``."""
        if self._pulse is None or self.exit_code is not None:
            return False
        self._pulse.look()
        return self._pulse.stalled

    def kill(self) -> None:
        """End it by force."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End it by force if it has not ended, and wait for that."""
        self.kill()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        decoder: msgspec.msgpack.Decoder[FromApi] = msgspec.msgpack.Decoder(FromApi)
        reader, writer = await asyncio.open_connection(sock=self._socket.dup())
        reading = asyncio.create_task(self._read(reader, decoder))
        try:
            # Looked after as well, since what it has started may keep its end of the socket open.
            while self._process.poll() is None:
                await asyncio.wait((reading,), timeout=POLL_SECONDS)
                if reading.done():
                    await asyncio.sleep(0.01)
            await asyncio.wait((reading,), timeout=POLL_SECONDS)  # for its last words
        finally:
            reading.cancel()
            writer.close()
            self._socket.close()
        self.exit_code = self._process.returncode
        if not self.listening.done():
            self.listening.set_exception(EngineDead(f"an API process ended with code {self.exit_code}"))
        self._on_change()

    async def _read(self, reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[FromApi]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                self._take(decoder.decode(await reader.readexactly(length)))

    def _take(self, message: FromApi) -> None:
        if self._pulse is not None:
            self._pulse.heard()
        if isinstance(message, Drained):
            self.drained = True
            self._on_change()
        elif self.listening.done():
            return
        elif isinstance(message, Failed):
            error = (
                EngineDead(message.message)
                if message.config_field is None
                else ConfigError(message.message, field=message.config_field or None)
            )
            self.listening.set_exception(error)
        elif isinstance(message, Listening):
            self.listening.set_result(message)
            self._pulse = Pulse(
                lambda: self.tell(Ping()),
                lambda: process_cpu_seconds(self.pid),
                stall_seconds=HANG_SECONDS,
                longest_seconds=BUSY_SECONDS,
            )
