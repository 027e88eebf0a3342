"""One request from its item to its record."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.records import RequestRecord
from vllm_bench.transport.client import HttpClient
from vllm_bench.transport.connection import TransportError
from vllm_bench.workload.item import WorkItem
from vllm_cli.sse import SSEDecoder

_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Sender:
    """Sends requests to one endpoint.

    Args:
        path: where the endpoint is found at the client's server.
        options: fields of the body that all requests share.
    """

    def __init__(
        self, client: HttpClient, endpoint: Endpoint, path: str, model: str, options: Mapping[str, Any]
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._path = path
        self._model = model
        self._options = options

    async def send(self, item: WorkItem, record: RequestRecord) -> None:
        """Send ``item`` and fill in ``record``. A failure is recorded, not raised.

        Raises:
            ValueError: the endpoint cannot carry such an item.
        """
        body = self._endpoint.body(item, self._model, self._options)
        request = self._client.request(self._path, json.dumps(body).encode())
        answer = (_Stream if self._endpoint.streamed else _Whole)(self._endpoint, record)
        record.sent = time.perf_counter()
        try:
            record.ended = await self._client.send(request, answer)
            answer.end(record.ended)
        except TransportError as error:
            record.ended = time.perf_counter()
            record.error = record.error or str(error)
        if record.error is None:
            record.error = self._endpoint.complaint(record)


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

    def _read(self, text: str | bytes | bytearray, now: float) -> None:
        try:
            self._endpoint.read(json.loads(text), now, self._record)
        except _NONSENSE as error:
            self._record.error = f"not what {self._endpoint.path} answers: {type(error).__name__}: {error}"


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
                self._read(event.data, now)

    def _finish(self, now: float) -> None:
        if not self._record.finished:
            self._record.error = "the stream ended without [DONE]"


class _Whole(_Answer):
    """One JSON object."""

    def _take(self, now: float, data: bytes) -> None:
        self._body += data

    def _finish(self, now: float) -> None:
        self._record.finished = True
        self._read(self._body, now)


def _message(body: str) -> str:
    """What the body of an error says: OpenAI's ``{"error": {"message": ...}}``, else its first 200 characters."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        body = str(json.loads(body)["error"]["message"])
    return " ".join(body.split())[:200]
