"""Errors as clients of Anthropic's API know them: what goes out under ``/v1/messages``, whoever made it."""

from collections.abc import Mapping
from typing import Any

import msgspec

PATH = "/v1/messages"
OVERLOADED = 529
"""The status that Anthropic's clients know for a server with too much to do; 429 is for a client that asks too much."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class ErrorFacts(msgspec.Struct, omit_defaults=True):
    """For programs: a fixed name of the cause, and the field at fault."""

    error_code: str | None = None
    param: str | None = None


class MessagesErrorDetail(msgspec.Struct):
    """What went wrong, by kind and for people."""

    type: str
    message: str
    details: ErrorFacts | msgspec.UnsetType = msgspec.UNSET


class MessagesErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """The body of every answer that is no success, and the data of the event that ends a stream which failed."""

    error: MessagesErrorDetail
    request_id: str | None = None


def speaks_anthropic(scope: Mapping[str, Any]) -> bool:
    """Whether an HTTP request is for Anthropic's API."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return bool(path == PATH or path.startswith(f"{PATH}/"))


def label_of(scope: Mapping[str, Any]) -> str | None:
    """The label of the request, once it has one."""
    label: str | None = scope.get("state", {}).get("request_id")
    return label


def messages_status(status: int, code: str | None) -> int:
    """The status for an error that is ``status`` and ``code`` elsewhere."""
    return OVERLOADED if code == "overloaded" else status


def messages_error(
    message: str, status: int, code: str | None, param: str | None, request_id: str | None
) -> MessagesErrorBody:
    """The body for an error that is ``status``, ``code`` and ``param`` elsewhere."""
    status = messages_status(status, code)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    facts = ErrorFacts(code, param) if code or param else msgspec.UNSET
    return MessagesErrorBody(MessagesErrorDetail(kind, message, facts), request_id)
