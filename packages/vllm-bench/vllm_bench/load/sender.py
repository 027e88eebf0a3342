"""One request from its item to its record."""

import itertools
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.load.answers import Stream, Unread, Whole
from vllm_bench.records import RequestRecord
from vllm_bench.transport.client import HttpClient
from vllm_bench.transport.connection import TransportError
from vllm_bench.workload.item import WorkItem

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
        self._unread = Unread()

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

        What a complete stream says is in the record only after ``read_rest``, unless the next turn of a conversation
        is made of it.

        Raises:
            ValueError: the endpoint cannot carry such an item.
        """
        request = self._prepared.pop(id(item), None) or self._request(item)
        answer = (
            Stream(self._endpoint, record, self._unread if item.follow_up is None else None)
            if request.streamed
            else Whole(self._endpoint, record)
        )
        record.sent = time.perf_counter()
        try:
            record.ended = await self._client.send(request.content, answer)
        except TransportError as error:
            record.ended = time.perf_counter()
            answer.break_off(str(error))
        else:
            answer.end()

    def read_rest(self) -> None:
        """Complete the records of all that was sent; takes its time."""
        self._unread.read()

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
