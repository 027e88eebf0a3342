"""``GET /metrics`` for Prometheus."""

from fastapi import APIRouter
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of

router = APIRouter()

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/metrics")
async def metrics(raw: Request) -> Response:
    """All metrics in the text format."""
    return Response(generate_latest(context_of(raw).registry), headers={"content-type": TEXT_FORMAT})
