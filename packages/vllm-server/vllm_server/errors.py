"""Errors over HTTP: the one table from exception classes to status codes, and the OpenAI error body.

What goes out under the paths of Anthropic's API gets its shape instead, see ``anthropic_errors``.
"""

import logging
from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm_engine.errors import EngineDead, EngineStalled, InvalidRequest, NotFound, Overloaded, RequestFailed, VllmError
from vllm_server.anthropic_errors import (
    MessagesErrorBody,
    label_of,
    messages_error,
    messages_status,
    speaks_anthropic,
)

logger = logging.getLogger(__name__)


class PayloadTooLarge(VllmError):
    """The request body is longer than the server takes (HTTP 413)."""


class UnsupportedMediaType(VllmError):
    """The request body is declared to be something else than JSON (HTTP 415)."""


class Unauthorized(VllmError):
    """The request carries no valid key (HTTP 401)."""

    def __init__(self) -> None:
        super().__init__("A valid API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.")


class Forbidden(VllmError):
    """The key of the request is valid, but does not open this route (HTTP 403)."""

    def __init__(self) -> None:
        super().__init__("This route needs an admin key; the key of this request is another.")


class RateLimited(Overloaded):
    """The key of the request has used up what it may use for now (HTTP 429)."""


class ShuttingDown(VllmError):
    """The server stops and has ended the request (HTTP 503)."""


class EngineAsleep(VllmError):
    """Requests are held until the engine is woken up (HTTP 503 of who asks whether it is ready)."""

    def __init__(self) -> None:
        super().__init__("The engine sleeps: requests wait until it is woken up.")


class ErrorDetail(msgspec.Struct):
    """What went wrong: for people, by kind, the parameter at fault, and a fixed name for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of every response that is not a success."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class _HttpFace:
    status: int
    type: str
    code: str | None = None


# The first class that matches decides; subclasses stand before their bases.
_FACES: tuple[tuple[type[Exception], _HttpFace], ...] = (
    (InvalidRequest, _HttpFace(400, "invalid_request_error")),
    (Unauthorized, _HttpFace(401, "invalid_request_error", "invalid_api_key")),
    (Forbidden, _HttpFace(403, "permission_error", "admin_key_needed")),
    (NotFound, _HttpFace(404, "not_found_error", "not_found")),
    (PayloadTooLarge, _HttpFace(413, "invalid_request_error", "payload_too_large")),
    (UnsupportedMediaType, _HttpFace(415, "invalid_request_error", "unsupported_media_type")),
    (RateLimited, _HttpFace(429, "rate_limit_error", "rate_limit_exceeded")),
    (Overloaded, _HttpFace(429, "overloaded_error", "overloaded")),
    (ShuttingDown, _HttpFace(503, "service_unavailable_error", "shutting_down")),
    (EngineAsleep, _HttpFace(503, "service_unavailable_error", "engine_asleep")),
    (EngineDead, _HttpFace(503, "service_unavailable_error", "engine_dead")),
    (EngineStalled, _HttpFace(503, "service_unavailable_error", "engine_stalled")),
    (RequestFailed, _HttpFace(500, "server_error", "request_failed")),
)
_INTERNAL = _HttpFace(500, "server_error", "internal_error")
_INTERNAL_MESSAGE = "The server met an unexpected error; its log has the details."
_MAX_MESSAGE = 2000
_DEAD_MESSAGE = "The engine has stopped and serves no more requests."


def http_status(error: Exception) -> int:
    """The status code of an error."""
    return _face(error).status


def error_body(error: Exception) -> ErrorBody:
    """The OpenAI error body of an error. The text of unexpected errors stays in the log: it may hold anything."""
    face = _face(error)
    message = str(error)
    if face is _INTERNAL:
        message = _INTERNAL_MESSAGE
    elif isinstance(error, EngineDead):
        message = _DEAD_MESSAGE
    if len(message) > _MAX_MESSAGE:  # it quotes what the client has sent
        message = f"{message[: _MAX_MESSAGE // 2]} ... {message[-_MAX_MESSAGE // 2 :]}"
    return ErrorBody(ErrorDetail(message, face.type, getattr(error, "field", None), face.code))


def messages_error_of(error: Exception, label: str | None) -> MessagesErrorBody:
    """The same in Anthropic's shape; ``label`` is that of the request."""
    detail = error_body(error).error
    return messages_error(detail.message, http_status(error), detail.code, detail.param, label)


def error_response(error: Exception) -> Response:
    """The whole response for an error that comes before any byte of the answer was sent."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if isinstance(error, (ShuttingDown, EngineDead, EngineStalled)):
        headers["retry-after"] = "1"
    if isinstance(error, ShuttingDown):
        headers["connection"] = "close"  # the next request of this client belongs to another server
    if _face(error) is _INTERNAL:
        headers["connection"] = "close"  # uvicorn closes it, and a client that does not know may use it again
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return _json_response(error_body(error), http_status(error), headers)


async def handle_vllm_error(request: Request, error: Exception) -> Response:
    """Exception handler for everything raised on purpose."""
    return error_response(error)


async def handle_client_gone(request: Request, error: Exception) -> Response:
    """Exception handler for a client that left: nobody reads the answer, and the log needs no word of it."""
    return Response(status_code=499)


async def handle_unexpected_error(request: Request, error: Exception) -> Response:
    """Exception handler for everything else. Starlette raises the error again, so that it gets into the log."""
    return error_response(error)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler for the framework's own refusals: unknown routes and wrong methods."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status == 404:
        detail = ErrorDetail("There is no such route.", "not_found_error", None, "unknown_route")
    elif status == 405:
        allowed = headers.get("allow") or headers.get("Allow") or "another method"
        detail = ErrorDetail(f"This route takes {allowed}.", "invalid_request_error", None, "method_not_allowed")
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
        detail = ErrorDetail(str(getattr(error, "detail", "")) or "The request failed.", kind)
    return _json_response(ErrorBody(detail), status, headers)


def _face(error: Exception) -> _HttpFace:
    return next((face for kind, face in _FACES if isinstance(error, kind)), _INTERNAL)


def _json_response(body: ErrorBody, status: int, headers: dict[str, str]) -> Response:
    return _ErrorResponse(body, status, headers)


class _ErrorResponse(Response):
    """An error in the shape of the API for which the request is."""

    def __init__(self, body: ErrorBody, status: int, headers: dict[str, str]) -> None:
        super().__init__(msgspec.json.encode(body), status, headers, media_type="application/json")
        self._error = body.error
        self._given_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not speaks_anthropic(scope):
            await super().__call__(scope, receive, send)
            return
        status, error = self.status_code, self._error
        body = messages_error(error.message, status, error.code, error.param, label_of(scope))
        status = messages_status(status, error.code)
        headers = self._given_headers
        await Response(msgspec.json.encode(body), status, headers, media_type="application/json")(scope, receive, send)
