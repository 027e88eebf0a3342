"""``X-Request-Id``: a label that the client may choose, echoed on every response. The engine never sees it."""

import re
import uuid

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_engine.errors import InvalidRequest
from vllm_server.anthropic_errors import speaks_anthropic

_HEADER = b"x-request-id"
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def is_sane(label: str) -> bool:
    """Whether a client's label may go into headers and logs."""
    return _SANE.fullmatch(label) is not None


def take_label(request: Request, label: str | None) -> None:
    """Use the ``request_id`` of a body as the label of the response, unless a header has named one.

    Raises ``InvalidRequest`` for a label that cannot go into a header.
    """
    if label is None:
        return
    if not is_sane(label):
        raise InvalidRequest("request_id takes up to 128 letters, digits and ._:/+=-", field="request_id")
    state = request.scope.get("state", {})
    if not state.get("request_id_given"):
        state["request_id"] = label


class RequestIdMiddleware:
    """Puts the client's label, or a fresh one, into ``scope["state"]["request_id"]`` and onto the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER.decode())
        state = scope.setdefault("state", {})
        state["request_id"] = given if given and is_sane(given) else uuid.uuid4().hex
        state["request_id_given"] = given is not None
        # Where clients of Anthropic's API look for it.
        names = (_HEADER, b"request-id") if speaks_anthropic(scope) else (_HEADER,)

        async def send_labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                label = state["request_id"].encode()
                message["headers"] = [*message.get("headers", []), *((name, label) for name in names)]
            await send(message)

        await self.app(scope, receive, send_labelled)
