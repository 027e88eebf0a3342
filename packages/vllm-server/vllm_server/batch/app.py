"""A call of the application without a socket: a batch goes the way of every HTTP request, from the route on."""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from vllm_server.errors import error_body, http_status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application answered: status, label of the request, JSON."""

    status: int
    request_id: str
    body: bytes


async def post(app: ASGIApp, url: str, body: bytes) -> Answer:
    """The answer of ``app`` to a POST of JSON to the route ``url``. Cancelling this ends the request."""
    to_read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, headers, parts = 0, {}, []

    async def receive() -> Message:
        if not to_read:
            await asyncio.Event().wait()  # this client never goes away
        return to_read.pop()

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], dict(message["headers"])
        else:
            parts.append(message["body"])

    try:
        await app(_scope(url, body), receive, send)
    except Exception as error:
        # The application raises what nobody expected once more after its own answer with a 500.
        logger.exception("a request of the batch failed")
        if not parts:
            status, parts = http_status(error), [msgspec.json.encode(error_body(error))]
    label = headers.get(b"x-request-id")
    return Answer(status, label.decode() if label else uuid.uuid4().hex, b"".join(parts))


def _scope(url: str, body: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
