"""The record of each HTTP request, from its head to the end of its answer."""

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_server.telemetry.request_record import RequestRecord, enter_record, leave_record


class RecordMiddleware:
    """Gives each request its ``RequestRecord``. It stands outside of all others, so that no time is missing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token = enter_record(RequestRecord())
        try:
            await self.app(scope, receive, send)
        finally:
            leave_record(token)
