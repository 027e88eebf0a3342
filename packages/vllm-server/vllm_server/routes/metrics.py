"""``GET /metrics`` for Prometheus."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of
from vllm_server.telemetry.snapshot import TEXT_FORMAT

router = APIRouter()


@router.get("/metrics")
async def metrics(raw: Request) -> Response:
    """All metrics in the text format."""
    return Response(context_of(raw).registry.page(), headers={"content-type": TEXT_FORMAT})
