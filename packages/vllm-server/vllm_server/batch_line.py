"""One line of a batch: what it asks for, and what is written for it. The format is that of OpenAI's batch API."""

import uuid
from typing import TypeVar

import msgspec

from vllm_engine.errors import InvalidRequest
from vllm_server.batch_app import Answer
from vllm_server.context import new_id
from vllm_server.errors import ErrorDetail, error_body, http_status

URLS = ("/v1/chat/completions", "/v1/completions")
"""The routes that a line may name."""

T = TypeVar("T")


class BatchRequest(msgspec.Struct):
    """A request as its line has it; ``body`` is JSON that the route has yet to read."""

    custom_id: str
    url: str
    body: bytes


class BatchResponse(msgspec.Struct):
    """The answer of a route: its status, the label of the request, and its JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchResult(msgspec.Struct):
    """One line of the output. ``error`` repeats the error of a body that has one, so that failures are easy to find."""

    id: str
    custom_id: str | None
    response: BatchResponse
    error: ErrorDetail | None = None

    def encoded(self) -> bytes:
        """The line, with its end."""
        return msgspec.json.encode(self) + b"\n"


class _Failed(msgspec.Struct):
    error: ErrorDetail | None = None


class _Streamed(msgspec.Struct):
    stream: bool | None = None


def parse_line(line: bytes) -> BatchRequest:
    """The request of a line. The body is checked by its route, save that it is an object and asks for no stream.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise InvalidRequest("the line must be a JSON object") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the line is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the line is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the JSON of the line is nested too deeply") from None
    custom_id = _field(fields, "custom_id", str, "a text")
    method = _field(fields, "method", str, "POST")
    if method != "POST":
        raise InvalidRequest(f"method must be POST, got {method[:80]!r}", field="method")
    url = _field(fields, "url", str, f"one of {', '.join(URLS)}")
    if url not in URLS:
        raise InvalidRequest(f"url must be one of {', '.join(URLS)}, got {url[:80]!r}", field="url")
    _field(fields, "body", dict[str, msgspec.Raw], "a JSON object")
    body = bytes(fields["body"])
    try:
        streamed = msgspec.json.decode(body, type=_Streamed).stream
    except (msgspec.DecodeError, UnicodeDecodeError):
        streamed = None  # the route will say what is wrong
    if streamed:
        raise InvalidRequest("stream must be false: an answer of a batch comes whole", field="stream")
    return BatchRequest(custom_id, url, body)


def custom_id_of(line: bytes) -> str | None:
    """The ``custom_id`` of a line that may be wrong elsewhere; None when it has none that can be read."""
    try:
        return _field(msgspec.json.decode(line, type=dict[str, msgspec.Raw]), "custom_id", str, "a text")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest):
        return None


def answered(request: BatchRequest, answer: Answer) -> BatchResult:
    """The result of a request that its route has answered."""
    response = BatchResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
    error = None if answer.status < 400 else msgspec.json.decode(answer.body, type=_Failed).error
    return BatchResult(new_id("vllm"), request.custom_id, response, error)


def refused(custom_id: str | None, number: int, reason: Exception) -> BatchResult:
    """The result of line ``number``, which no route has seen, in the shape of a route's own refusal."""
    body = error_body(reason)
    body.error.message = f"line {number}: {body.error.message}"
    response = BatchResponse(http_status(reason), uuid.uuid4().hex, msgspec.Raw(msgspec.json.encode(body)))
    return BatchResult(new_id("vllm"), custom_id, response, body.error)


def _field(fields: dict[str, msgspec.Raw], name: str, kind: type[T], meaning: str) -> T:
    if name not in fields:
        raise InvalidRequest(f"{name} is missing", field=name)
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(f"{name} must be {meaning}", field=name) from None
