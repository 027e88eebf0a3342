"""Errors of requests: kept in their records, and in the log with their stacks where that is wanted."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.logging import get_logger
from vllm_server.telemetry.request_record import RequestRecord, current_record

logger = get_logger(__name__)

Handler = Callable[[Request, Exception], Awaitable[Response]]


def remembered(handler: Handler) -> Handler:
    """An exception handler that also puts the error into the record of the request."""

    async def handle(request: Request, error: Exception) -> Response:
        current_record().fail(error)
        return await handler(request, error)

    return handle


class ErrorLog:
    """Logs the stack of each error that was answered."""

    def on_end(self, record: RequestRecord) -> None:
        """The answer is out."""
        if record.error is not None:
            logger.error(
                "request %s was answered with an error",
                record.label,
                exc_info=(type(record.error), record.error, record.stack),
            )
