"""One request from its item to its record."""

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.records import RequestRecord
from vllm_bench.transport.client import HttpClient
from vllm_bench.transport.connection import TransportError
from vllm_bench.workload.item import WorkItem
from vllm_cli.sse import SSEDecoder

_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_PREPARED_BYTES = 256 * 1024**2


class Sender:
    """Sends requests to one endpoint.

    Args:
        path: where the endpoint is found at the client's server.
        options: fields of the body that all requests share.
        id_prefix: makes the ``X-Request-Id`` of each request, with the request's number; None sends none.
    """

    def __init__(
        self,
        client: HttpClient,
        endpoint: Endpoint,
        path: str,
        model: str,
        options: Mapping[str, Any],
        id_prefix: str | None = None,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._path = path
        self._model = model
        self._options = options
        self._id_prefix = id_prefix
        self._numbers = itertools.count()
        self._prepared: dict[int, _Request] = {}

    def prepare(self, items: Iterable[WorkItem]) -> None:
        """Make requests beforehand, as far as memory allows: while the clock runs, it would be the client's time.

        The items must live until they are sent.

        Raises:
            ValueError: the endpoint cannot carry such an item.
        """
        size = 0
        for item in items:
            request = self._request(item)
            self._prepared[id(item)] = request
            size += len(request.content)
            if size > _PREPARED_BYTES:
                return

    async def send(self, item: WorkItem, record: RequestRecord) -> None:
        """Send ``item`` and fill in ``record``. A failure is recorded, not raised.

        Raises:
            ValueError: the endpoint cannot carry such an item.
        """
        request = self._prepared.pop(id(item), None) or self._request(item)
        answer = (_Stream if request.streamed else _Whole)(self._endpoint, record)
        record.sent = time.perf_counter()
        try:
            record.ended = await self._client.send(request.content, answer)
            answer.end(record.ended)
        except TransportError as error:
            record.ended = time.perf_counter()
            record.error = record.error or str(error)
        if record.error is None:
            record.error = self._endpoint.complaint(record)

    def _request(self, item: WorkItem) -> "_Request":
        body = self._endpoint.body(item, self._model, self._options)
        streamed = bool(body.get("stream"))
        if not streamed:
            # Servers refuse options of a stream that is none.
            body.pop("stream_options", None)
        number = next(self._numbers)
        headers = None if self._id_prefix is None else {"X-Request-Id": f"{self._id_prefix}{number}"}
        return _Request(self._client.request(self._path, json.dumps(body).encode(), headers), streamed)


class _Request(NamedTuple):
    """What is sent, and how it will be answered."""

    content: bytes
    streamed: bool


class _Answer:
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
        elif self._record.error is None:
            self._take(now, data)

    def end(self, now: float) -> None:
        """The answer ended at ``now``."""
        if self._status != 200:
            self._record.error = f"status {self._status}: {_message(self._body.decode(errors='replace'))}"
        elif self._record.error is None:
            self._finish(now)

    def _take(self, now: float, data: bytes) -> None:
        raise NotImplementedError

    def _finish(self, now: float) -> None:
        raise NotImplementedError

    def _nonsense(self, error: Exception) -> str:
        return f"not what {self._endpoint.path} answers: {type(error).__name__}: {error}"


class _Stream(_Answer):
    """Server-sent events."""

    def __init__(self, endpoint: Endpoint, record: RequestRecord) -> None:
        super().__init__(endpoint, record)
        self._decoder = SSEDecoder()

    def _take(self, now: float, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if event.data == "[DONE]":
                self._record.finished = True
            elif self._record.error is None:
                try:
                    self._endpoint.read(json.loads(event.data), now, self._record)
                except _NONSENSE as error:
                    self._record.error = self._nonsense(error)

    def _finish(self, now: float) -> None:
        if not self._record.finished:
            self._record.error = "the stream ended without [DONE]"


class _Whole(_Answer):
    """One JSON object."""

    def _take(self, now: float, data: bytes) -> None:
        self._body += data

    def _finish(self, now: float) -> None:
        self._record.finished = True
        try:
            self._endpoint.read_whole(json.loads(self._body), self._record)
        except _NONSENSE as error:
            self._record.error = self._nonsense(error)


def _message(body: str) -> str:
    """What the body of an error says: OpenAI's ``{"error": {"message": ...}}``, else its first 200 characters."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        body = str(json.loads(body)["error"]["message"])
    return " ".join(body.split())[:200]
