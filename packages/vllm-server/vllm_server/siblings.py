"""The processes of one server talk to each other: a private socket each, in a folder that only the user can enter."""

import asyncio
import contextlib
import os
import struct
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

ANSWER_SECONDS = 2.0
"""How long a process gets to answer a question."""
_LENGTH = struct.Struct("<I")
_TEXTS = ("method", "scheme", "path", "root_path")
_DATA = ("raw_path", "query_string")

Answer = Callable[[bytes], bytes]


class Question(msgspec.Struct, tag="question"):
    """Answered with bytes, by its name."""

    name: str
    argument: bytes = b""


class Visit(msgspec.Struct, tag="visit"):
    """A request without a body, for the application of the other process: what its ASGI scope has."""

    texts: dict[str, str]
    data: dict[str, bytes]
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None


class Start(msgspec.Struct, tag="start"):
    """The beginning of the response."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Body(msgspec.Struct, tag="body"):
    """A piece of it."""

    data: bytes
    more: bool


_asked: msgspec.msgpack.Decoder[Question | Visit] = msgspec.msgpack.Decoder(Question | Visit)
_sent: msgspec.msgpack.Decoder[Start | Body] = msgspec.msgpack.Decoder(Start | Body)


class Siblings:
    """The processes that serve the same port as this one, which has the number ``own``."""

    def __init__(self, folder: str, own: int, count: int) -> None:
        """
        Args:
            folder: where the sockets of all are, of mode 0700.
            own: number of this process.
            count: how many there are.
        """
        self.own = own
        self.app: ASGIApp | None = None
        """What serves the requests that others hand on, access control included."""
        self._folder = folder
        self._others = [number for number in range(count) if number != own]
        self._server: asyncio.Server | None = None
        self._answers: Mapping[str, Answer] = {}

    async def listen(self, answers: Mapping[str, Answer]) -> None:
        """Answer from now on: each question by its name, from its argument."""
        self._answers = answers
        path = self._path(self.own)
        if os.path.exists(path):
            os.unlink(path)  # of a process of this number that was killed
        self._server = await asyncio.start_unix_server(self._serve, path)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def ask_each(self, name: str) -> dict[int, bytes | None]:
        """The answers of the others by their numbers; None for one that is just being started anew, or hangs."""
        answers = await asyncio.gather(*(self.ask(number, name) for number in self._others))
        return dict(zip(self._others, answers, strict=True))

    async def ask_all(self, name: str) -> list[bytes]:
        """The answers of the others that answer."""
        return [answer for answer in (await self.ask_each(name)).values() if answer is not None]

    async def ask(self, number: int, name: str, argument: bytes = b"") -> bytes | None:
        """The answer of one of the others; None when it does not answer, or there is none of this number."""
        if number not in self._others:
            return None
        try:
            return await asyncio.wait_for(self._exchange(number, Question(name, argument)), ANSWER_SECONDS)
        except (OSError, EOFError, TimeoutError) as error:
            logger.warning("API process %d does not answer (%s)", number, type(error).__name__)
            return None

    async def hand_on(self, number: int, scope: Scope, receive: Receive, send: Send) -> bool:
        """Let one of the others serve a request, whose body is of no interest. False when it is not there."""
        if number not in self._others:
            return False
        try:
            reader, writer = await asyncio.open_unix_connection(self._path(number))
        except OSError:
            return False
        client = scope.get("client")
        visit = Visit(
            {name: scope[name] for name in _TEXTS if scope.get(name) is not None},
            {name: scope[name] for name in _DATA if scope.get(name) is not None},
            list(scope["headers"]),
            None if client is None else tuple(client),
        )
        relay = asyncio.ensure_future(_relay(reader, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await _write(writer, msgspec.msgpack.encode(visit))
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            return not relay.done() or relay.result()
        finally:
            writer.close()
            for task in (relay, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _exchange(self, number: int, question: Question) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path(number))
        try:
            await _write(writer, msgspec.msgpack.encode(question))
            return await _read(reader)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = _asked.decode(await _read(reader))
            if isinstance(asked, Visit):
                await self._receive_visit(asked, reader, writer)
            elif asked.name in self._answers:
                await _write(writer, self._answers[asked.name](asked.argument))
        except (OSError, EOFError):
            pass  # who asked is gone
        except Exception:
            logger.exception("what another process asked for could not be done")
        finally:
            writer.close()

    async def _receive_visit(self, visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.app is None:
            return
        scope: Scope = {
            "type": "http",
            # Of a version in which the application itself listens for the end of the connection.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            **visit.texts,
            **visit.data,
            "headers": visit.headers,
            "client": visit.client,
            "server": None,
            "state": {},
        }
        was_read = False

        async def receive() -> Message:
            nonlocal was_read
            if not was_read:
                was_read = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await reader.read()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent: Start | Body
            if message["type"] == "http.response.start":
                sent = Start(message["status"], [(bytes(name), bytes(value)) for name, value in message["headers"]])
            else:
                sent = Body(message.get("body", b""), message.get("more_body", False))
            await _write(writer, msgspec.msgpack.encode(sent))

        await self.app(scope, receive, send)

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, f"api-{number}.sock")


async def _relay(reader: asyncio.StreamReader, send: Send) -> bool:
    """Send a response on. False when there is none; raises ``EOFError`` when it breaks off."""
    has_begun = False
    while True:
        try:
            sent = _sent.decode(await _read(reader))
        except (OSError, EOFError):
            if has_begun:
                raise
            return False
        if isinstance(sent, Start):
            has_begun = True
            await send({"type": "http.response.start", "status": sent.status, "headers": sent.headers})
        else:
            await send({"type": "http.response.body", "body": sent.data, "more_body": sent.more})
            if not sent.more:
                return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


def _write(writer: asyncio.StreamWriter, data: bytes) -> Awaitable[None]:
    writer.write(_LENGTH.pack(len(data)) + data)
    return writer.drain()
