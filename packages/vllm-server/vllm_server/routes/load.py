"""``GET /load``: how busy the server is, for those who share requests out among several."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vllm_server.context import context_of

router = APIRouter()


@router.get("/load")
async def load(raw: Request) -> Response:
    """``server_load``: completions and chats whose answers are being made or sent, waiting ones included."""
    context = context_of(raw)
    others = [] if context.siblings is None else await context.siblings.ask_all("load")
    return JSONResponse({"server_load": len(context.in_flight) + sum(map(int, others))})
