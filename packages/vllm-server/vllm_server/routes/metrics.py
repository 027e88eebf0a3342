"""``GET /metrics`` for Prometheus."""

from fastapi import APIRouter
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of

router = APIRouter()


@router.get("/metrics")
async def metrics(raw: Request) -> Response:
    """All metrics in the text format."""
    return Response(generate_latest(context_of(raw).registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
