"""The record of each HTTP request, from its head to the end of its answer, and who is told of it then."""

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_engine.logging import get_logger
from vllm_server.telemetry.request_record import OutputListener, RequestRecord, enter_record, leave_record

logger = get_logger(__name__)


CLIENT_GONE = 499
"""The status of an answer that nobody is there to read."""


class Observer(Protocol):
    """Somebody who is told of requests. Called in the event loop: must be quick."""

    def on_end(self, record: RequestRecord) -> None:
        """The answer is out, or the client is gone."""
        ...


class Tracer(Observer, Protocol):
    """Somebody who follows requests through several programs."""

    def on_start(self, record: RequestRecord, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The head of a request has come."""
        ...


class RecordMiddleware:
    """Gives each request its ``RequestRecord``. It stands outside of all others, so that no time is missing."""

    def __init__(
        self,
        app: ASGIApp,
        observers: Sequence[Observer] = (),
        followers: Sequence[Observer] = (),
        listener: OutputListener | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """
        Args:
            app: what answers.
            observers: are told when the answer is out.
            followers: are told when the request's work in the background has ended, too, if it has any.
            listener: hears of all that is generated.
            tracer: a follower that also hears of the beginning.
        """
        self.app = app
        self._observers = observers
        self._followers = followers if tracer is None else (*followers, tracer)
        self._tracer = tracer
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(scope["method"], listener=self._listener)
        if self._tracer is not None:
            self._tracer.on_start(record, scope["headers"])

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if record.trace_response is not None:
                    message["headers"] = [*message.get("headers", ()), (b"traceresponse", record.trace_response)]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record.complete = record.status != CLIENT_GONE
            record.num_bytes += len(message.get("body", b""))

        token = enter_record(record)
        try:
            await self.app(scope, receive, send_recorded)
        finally:
            leave_record(token)
            if self._observers or self._followers:
                self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.ended = time.monotonic()
        record.content_length = _content_length(scope)
        record.label = scope.get("state", {}).get("request_id")
        record.route = getattr(scope.get("route"), "path", None)
        _tell(self._observers, record)
        if record.work is None:
            _tell(self._followers, record)
        else:
            record.work.add_done_callback(lambda _: self._end_work(record))

    def _end_work(self, record: RequestRecord) -> None:
        record.ended = time.monotonic()
        _tell(self._followers, record)


def _tell(observers: Iterable[Observer], record: RequestRecord) -> None:
    for observer in observers:
        try:
            observer.on_end(record)
        except Exception:
            logger.exception("a request could not be told of")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else 0
    return 0
