"""Routes for development, served only with ``VLLM_SERVER_DEV_MODE``: they touch what all requests share."""

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of
from vllm_server.server_facts import server_facts

router = APIRouter()


@router.get("/server_info")
async def server_info(raw: Request) -> Response:
    """The settings that hold, without secrets."""
    context = context_of(raw)
    return Response(
        msgspec.json.encode(server_facts(context.llm.config, context.config)), media_type="application/json"
    )


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(raw: Request) -> Response:
    """Forget the cached prefixes, so that the next prompts are computed whole. Running requests keep their blocks."""
    await context_of(raw).llm.call("reset_prefix_cache")
    return Response()
