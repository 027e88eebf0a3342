"""Is the server alive, is it ready, is the engine well; and which version it is."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vllm_server import __version__
from vllm_server.context import context_of

router = APIRouter()


@router.get("/health")
async def health(raw: Request) -> Response:
    """200 while the engine works, 503 once it is dead."""
    context_of(raw).llm.check_health()
    return Response()


@router.get("/livez")
async def alive(raw: Request) -> Response:
    """200 as long as the process answers at all."""
    return Response()


@router.get("/readyz")
async def ready(raw: Request) -> Response:
    """200 while new requests are taken, 503 when the engine is dead or the server is about to stop."""
    context = context_of(raw)
    context.in_flight.check_open()
    context.llm.check_health()
    return Response()


@router.get("/version")
async def version(raw: Request) -> Response:
    """Version of the server."""
    return JSONResponse({"version": __version__})
