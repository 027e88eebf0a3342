"""``POST /start_profile`` and ``/stop_profile``: a trace of the engine's steps, where a profiler is configured."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of

router = APIRouter()


@router.post("/start_profile")
async def start_profile(raw: Request) -> Response:
    """Record the engine's steps from now on, until ``/stop_profile``. All requests are slower meanwhile."""
    await context_of(raw).llm.start_profile()
    return Response()


@router.post("/stop_profile")
async def stop_profile(raw: Request) -> Response:
    """Write what was recorded into the folder that the server was started with."""
    await context_of(raw).llm.stop_profile()
    return Response()
