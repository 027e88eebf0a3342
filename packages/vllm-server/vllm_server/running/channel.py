"""What the launching process and an API process say to each other, over a pair of sockets.

The API process has its end as standard input. The first message is an ``ApiLaunch``, which has all that it needs to
know: nothing of it, keys for instance, is on a command line. When the other end is closed, however that process ended,
it ends too.
"""

import socket
import struct
from typing import Any

import msgspec

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.attached import CoreAddress
from vllm_server.config import ServerConfig

LENGTH = struct.Struct("<I")


class ApiLaunch(msgspec.Struct, frozen=True, tag="launch"):
    """One of ``count`` API processes.

    ``listener``, ``table`` and ``told_counts`` are descriptors that it inherits: of its listening socket, and of the
    memory in which all count what their limits are about, by ``tenants``, and keep what they have told of their counts.
    ``folder`` is where the sockets of the siblings are.
    """

    engine: EngineConfig
    server: ServerConfig
    core: CoreAddress
    index: int
    count: int
    listener: int
    table: int
    told_counts: int
    tenants: list[str]
    folder: str
    log_config: str | None


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Take no new requests, and let those that run finish."""


class StopAtOnce(msgspec.Struct, frozen=True, tag="stop at once"):
    """End what still runs, too."""


class End(msgspec.Struct, frozen=True, tag="end"):
    """All have finished: close the connections, and end."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answered with ``Pong`` by the event loop."""


class TellStacks(msgspec.Struct, frozen=True, tag="tell stacks"):
    """Write into the log where all threads are. Done by a thread, also while the event loop hangs."""


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """The API process takes requests. The request that it can be tried with: a route, and the fields of its body."""

    route: str
    body: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The API process could not start. ``config_field`` names the setting at fault, if one is; empty for several."""

    message: str
    config_field: str | None = None


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Nothing runs here any more. The port is still answered, with 503, until ``End``."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The event loop runs."""


ToApi = ApiLaunch | Stop | StopAtOnce | End | Ping | TellStacks
FromApi = Listening | Failed | Drained | Pong

TALLIES = ("requests", "tokens", "running", "charged")
"""What all processes count together: of the engine's queue, requests and tokens by tenant; of keys, running requests
and tokens since the beginning."""
LIVE_TALLIES = TALLIES[:3]
"""Those that fall when a process is gone."""


def packed(message: ToApi | FromApi) -> bytes:
    """A message, its length ahead of it."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


class ParentChannel:
    """The end of the API process. Blocks: it is read in a thread."""

    def __init__(self, file: int) -> None:
        self._socket = socket.socket(fileno=file)
        self._decoder: msgspec.msgpack.Decoder[ToApi] = msgspec.msgpack.Decoder(ToApi)

    def receive(self) -> ToApi | None:
        """The next message; None when there will be none."""
        head = self._read(LENGTH.size)
        data = None if head is None else self._read(LENGTH.unpack(head)[0])
        return None if data is None else self._decoder.decode(data)

    def send(self, message: FromApi) -> None:
        """Tell the parent. Without effect when it is gone, which ``receive`` tells."""
        try:
            self._socket.sendall(packed(message))
        except OSError:
            return

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                part = self._socket.recv(count - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return data
