"""The processes of one server ask each other: a private socket each, in a folder that only the user can enter."""

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Mapping

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

ANSWER_SECONDS = 2.0
"""How long a process gets to answer."""
_LENGTH = struct.Struct("<I")


class Siblings:
    """The processes that serve the same port as this one. Questions are names, answers bytes."""

    def __init__(self, folder: str, own: int, count: int) -> None:
        """
        Args:
            folder: where the sockets of all are, of mode 0700.
            own: number of this process.
            count: how many there are.
        """
        self._folder = folder
        self._own = own
        self._others = [number for number in range(count) if number != own]
        self._server: asyncio.Server | None = None
        self._answers: Mapping[str, Callable[[], bytes]] = {}

    async def listen(self, answers: Mapping[str, Callable[[], bytes]]) -> None:
        """Answer from now on, by the name of the question."""
        self._answers = answers
        path = self._path(self._own)
        if os.path.exists(path):
            os.unlink(path)  # of a process of this number that was killed
        self._server = await asyncio.start_unix_server(self._answer, path)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def ask_all(self, question: str) -> list[bytes]:
        """The answers of the others. One that does not answer, because it is just being started anew, is left out."""
        answers = await asyncio.gather(*(self._ask(number, question) for number in self._others))
        return [answer for answer in answers if answer is not None]

    async def _ask(self, number: int, question: str) -> bytes | None:
        try:
            return await asyncio.wait_for(self._exchange(number, question), ANSWER_SECONDS)
        except (OSError, EOFError, TimeoutError) as error:
            logger.warning("API process %d does not answer (%s)", number, type(error).__name__)
            return None

    async def _exchange(self, number: int, question: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path(number))
        try:
            await _write(writer, question.encode())
            return await _read(reader)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = (await _read(reader)).decode(errors="replace")
            if question in self._answers:
                await _write(writer, self._answers[question]())
        except (OSError, EOFError):
            pass  # who asked is gone
        except Exception:
            logger.exception("a question of another process could not be answered")
        finally:
            writer.close()

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, f"api-{number}.sock")


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


def _write(writer: asyncio.StreamWriter, data: bytes) -> Awaitable[None]:
    writer.write(_LENGTH.pack(len(data)) + data)
    return writer.drain()
