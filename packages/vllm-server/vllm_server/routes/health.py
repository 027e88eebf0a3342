"""Is the server alive, is it ready, is the engine well; and which version it is."""

import asyncio
import contextlib

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vllm_engine import envs
from vllm_engine.errors import EngineDead
from vllm_server import __version__
from vllm_server.context import ServerContext, context_of
from vllm_server.errors import EngineAsleep
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)

ANSWER_SECONDS = 0.5
"""In which an engine that sleeps says so."""


@router.get("/livez")
async def alive(raw: Request) -> Response:
    """200 unless only a restart can help: 503 once the engine is dead.

    With ``VLLM_KEEP_ALIVE_ON_ENGINE_DEATH`` the server is meant to outlive its engine: then 200 as long as it answers.
    """
    try:
        context_of(raw).llm.check_health()
    except EngineDead:
        if not envs.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"):
            raise
    return Response()


@router.get("/health")
@router.get("/ping")
@router.post("/ping")
async def well(raw: Request) -> Response:
    """200 while the engine is well and new requests are taken; asleep, it is well.

    503 when the engine is dead, when it makes no progress, and when the server is about to stop. An engine that has
    more to do than it can makes progress.
    """
    context = context_of(raw)
    context.in_flight.check_open()
    context.llm.check_progress()
    return Response()


@router.get("/readyz")
async def ready(raw: Request) -> Response:
    """As ``/health``, and 503 while the engine sleeps: balancers send requests elsewhere, and nobody restarts it."""
    answer = await well(raw)
    if await _sleeps(context_of(raw)):
        raise EngineAsleep
    return answer


async def _sleeps(context: ServerContext) -> bool:
    """Whether the engine sleeps. Of several processes, another one may have been asked to let it."""
    llm = context.llm
    if context.config.api_server_count > 1 and llm.config.model.enable_sleep_mode:
        with contextlib.suppress(TimeoutError):  # in the midst of a long step it is surely awake
            return await asyncio.wait_for(llm.is_sleeping(), ANSWER_SECONDS)
        return False
    return llm.asleep


@router.get("/version")
async def version(raw: Request) -> Response:
    """Version of the server."""
    return JSONResponse({"version": __version__})
