"""A client of a core that another process has started and will end."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.cpu_time import process_cpu_seconds
from vllm_engine.core.clients.socket_client import PROCESS_POLL_SECONDS, SocketClient
from vllm_engine.core.stacks import stacks_of
from vllm_engine.messages import Hello

if TYPE_CHECKING:
    import zmq


class CoreAddress(msgspec.Struct, frozen=True):
    """Where a core is, and who its client is there: ``name`` is used once for the life of the core, and not empty.

    ``model_path`` is the folder of the model that the core has loaded. ``stacks_folder`` is where the core writes its
    stacks; empty where another client asks for them.
    """

    path: str
    pid: int
    name: str
    model_path: str
    stacks_folder: str = ""


class AttachedClient(SocketClient):
    """One of several clients of a core. It ends without the core, and the core's parent tells the core that it did."""

    def __init__(self, config: EngineConfig, model_path: Path, address: CoreAddress) -> None:
        super().__init__(config, model_path)
        self._address = address

    def cpu_seconds(self) -> float | None:
        """Processor time of all threads of the core's process; None where the system does not tell."""
        return process_cpu_seconds(self._address.pid)

    async def stacks(self) -> str:
        """Where the threads of the core's process are; empty where that is for another client to ask."""
        return await stacks_of(self._address.pid, folder) if (folder := self._address.stacks_folder) else ""

    def _connect(self) -> "zmq.Socket[bytes]":
        import zmq

        socket = self._open(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, self._address.name.encode())
        socket.connect(f"ipc://{self._address.path}")
        self._send(Hello())
        return socket

    async def _end_of_core(self) -> str:
        """The process is not a child of this one."""
        try:
            descriptor = os.pidfd_open(self._address.pid)
        except ProcessLookupError:
            pass
        except OSError:  # an older system
            while _runs(self._address.pid):
                await asyncio.sleep(PROCESS_POLL_SECONDS)
        else:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return "the engine process has ended"

    def _ask_to_end(self) -> None:
        self._stop()
        self._die("the engine is closed")

    def _wait_for_end(self) -> None:
        """The core goes on."""

    def _clean_up(self) -> None:
        self._close_socket()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
