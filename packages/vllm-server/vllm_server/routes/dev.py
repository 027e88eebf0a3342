"""Routes for development, served only with ``VLLM_SERVER_DEV_MODE``: they touch what all requests share."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of

router = APIRouter()


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(raw: Request) -> Response:
    """Forget the cached prefixes, so that the next prompts are computed whole. Running requests keep their blocks."""
    await context_of(raw).llm.call("reset_prefix_cache")
    return Response()
