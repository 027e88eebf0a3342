"""Answers as they come in, and what becomes of them in their records.

To read a piece of a stream (its events, their JSON) takes as long as all else that is done for it, of cores that the
server may need itself. So while a load runs, the pieces of a stream are only kept, each with its moment, and read when
the load is over. Of its end so much is read at once as tells whether the answer is complete; any doubt has all of it
read then.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable

from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.records import RequestRecord
from vllm_cli.sse import SSEDecoder

UNREAD_BYTES = 256 * 1024**2
_LAST_PIECES = 2
"""Those that may say how a stream has ended: an error or the usage, and ``[DONE]``."""
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Unread:
    """The streams of a load that are still to be read.

    Args:
        limit: bytes of all of them, beyond which pieces are read as they come, and earlier ones beside them.
    """

    def __init__(self, limit: int = UNREAD_BYTES) -> None:
        self.size = 0
        self.limit = limit
        self._streams: list[Stream] = []

    def add(self, stream: "Stream") -> None:
        """``stream`` has come to its end."""
        self._streams.append(stream)

    def read(self) -> None:
        """Read all of them."""
        for stream in self._streams:
            stream.settle()
        self._streams.clear()
        self.size = 0  # also what was cut off in the middle, which nobody wants


class Answer:
    """Takes in the pieces of an answer; one with another status than 200 is an error."""

    def __init__(self, endpoint: Endpoint, record: RequestRecord) -> None:
        self._endpoint = endpoint
        self._record = record
        self._status = 200
        self._body = bytearray()

    def on_data(self, status: int, now: float, data: bytes) -> None:
        """See ``Receiver``."""
        if status != 200:
            self._status = status
            self._body += data
        else:
            self._take(now, data)

    def end(self) -> None:
        """The whole answer is here."""
        if self._status != 200:
            self._record.error = f"status {self._status}: {_message(self._body.decode(errors='replace'))}"
        else:
            self._finish()

    def break_off(self, error: str) -> None:
        """There will be no more of it."""
        self._record.error = self._record.error or error

    def settle(self) -> None:
        """Judge the answer, all of which is read."""
        if self._record.error is None:
            self._record.error = self._endpoint.complaint(self._record)

    def _take(self, now: float, data: bytes) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class Stream(Answer):
    """Server-sent events.

    Args:
        unread: where it waits to be read; None reads it as it comes, for whoever needs the text at its end.
    """

    def __init__(self, endpoint: Endpoint, record: RequestRecord, unread: Unread | None) -> None:
        super().__init__(endpoint, record)
        self._unread = unread
        self._decoder = SSEDecoder()

    def break_off(self, error: str) -> None:
        """See ``Answer``."""
        self._read(len(self._record.unread))
        super().break_off(error)

    def settle(self) -> None:
        """Read what is left, and judge."""
        self._read(len(self._record.unread))
        if self._record.error is None and not self._record.finished:
            self._record.error = "the stream ended without [DONE]"
        super().settle()

    def _take(self, now: float, data: bytes) -> None:
        self._record.unread.append((now, data))
        if self._unread is None:
            self._read(1)
        else:
            self._unread.size += len(data)
            if self._unread.size > self._unread.limit:
                self._read(2)

    def _finish(self) -> None:
        if self._unread is not None and self._ends_well():
            self._unread.add(self)
        else:
            self.settle()

    def _ends_well(self) -> bool:
        """Whether its end is that of a complete answer, of which more is unread."""
        waiting = self._record.unread
        if len(waiting) <= _LAST_PIECES:
            return False
        end = RequestRecord(0.0, 0.0)
        _read(itertools.islice(waiting, len(waiting) - _LAST_PIECES, None), SSEDecoder(), self._endpoint, end)
        self._record.announced_tokens = end.completion_tokens
        return end.finished and end.error is None

    def _read(self, count: int) -> None:
        """Read the oldest ``count`` pieces that are unread."""
        waiting = self._record.unread
        oldest = [waiting.popleft() for _ in range(min(count, len(waiting)))]
        if self._unread is not None:
            self._unread.size -= sum(len(data) for _, data in oldest)
        _read(oldest, self._decoder, self._endpoint, self._record)


class Whole(Answer):
    """One JSON object."""

    def _take(self, now: float, data: bytes) -> None:
        self._body += data

    def _finish(self) -> None:
        self._record.finished = True
        try:
            self._endpoint.read_whole(json.loads(self._body), self._record)
        except _NONSENSE as error:
            self._record.error = _nonsense(self._endpoint, error)
        self.settle()


def _read(
    pieces: Iterable[tuple[float, bytes]], decoder: SSEDecoder, endpoint: Endpoint, record: RequestRecord
) -> None:
    """Read ``pieces`` of a stream, each with its moment, into ``record``: up to an error."""
    for now, data in pieces:
        if record.error is not None:
            return
        for event in decoder.feed(data):
            if event.data == "[DONE]":
                record.finished = True
            elif record.error is None:
                try:
                    endpoint.read(json.loads(event.data), now, record)
                except _NONSENSE as error:
                    record.error = _nonsense(endpoint, error)


def _nonsense(endpoint: Endpoint, error: Exception) -> str:
    return f"not what {endpoint.path} answers: {type(error).__name__}: {error}"


def _message(body: str) -> str:
    """What the body of an error says: OpenAI's ``{"error": {"message": ...}}``, else its first 200 characters."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        body = str(json.loads(body)["error"]["message"])
    return " ".join(body.split())[:200]
