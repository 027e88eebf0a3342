"""Connections whose writes leave at the end of a turn of the event loop, each in one piece, one after the other.

A step of the engine brings a chunk for every stream. Written as they are made, each would wake up its reader, who may
take the core of who writes. Also, a head would leave before the first chunk, and the end of a stream after the last.
"""

import asyncio
from typing import Any

MOST_BYTES = 64 * 1024
"""So much of one connection leaves at once: from there on the transport says when to wait."""


class WriteTurn:
    """Connections that have something to write, until the end of the turn of the event loop."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[JoinedTransport] = []

    def add(self, transport: "JoinedTransport") -> None:
        """Flush a connection when everybody has had a turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(transport)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            transport.flush()


class JoinedTransport(asyncio.Transport):
    """The transport of a connection, as far as uvicorn uses it. What is written waits for the end of the turn."""

    __slots__ = ("_pieces", "_size", "_transport", "_turn")

    def __init__(self, transport: asyncio.Transport, turn: WriteTurn) -> None:
        self._transport = transport
        self._turn = turn
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:
        """Send bytes, in the order of the calls."""
        pieces = self._pieces
        if not pieces:
            self._turn.add(self)
        pieces.append(data)
        self._size += len(data)
        if self._size >= MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what waits now."""
        pieces = self._pieces
        if not pieces:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._size = [], 0
        if not self._transport.is_closing():
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        """Bytes that the system has not taken yet."""
        return self._size + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Close when all has been sent."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever waits to be sent."""
        self._pieces, self._size = [], 0
        self._transport.abort()

    def write_eof(self) -> None:
        """Send what waits, and the end."""
        self.flush()
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Whether the end of one direction can be told."""
        return self._transport.can_write_eof()

    def is_closing(self) -> bool:
        """Whether ``close`` was called, or the client has gone."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read nothing until ``resume_reading``."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the connection."""
        return self._transport.get_extra_info(name, default)
