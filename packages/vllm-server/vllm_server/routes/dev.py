"""Routes for development, served only with ``VLLM_SERVER_DEV_MODE``: they touch what all requests share."""

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vllm_engine.errors import InvalidRequest, RequestFailed, Unsupported
from vllm_engine.frontend.sleeping import check_tags
from vllm_engine.messages import SLEEP_TAGS
from vllm_server.context import context_of
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import FLAG, body_docs, query_docs
from vllm_server.protocol.control import CollectiveRpcRequest, CollectiveRpcResults
from vllm_server.server_facts import server_facts

router = APIRouter()


@router.get("/server_info", openapi_extra=query_docs(config_format={"enum": ["json"]}))
async def server_info(raw: Request) -> Response:
    """The settings that hold, without secrets."""
    if raw.query_params.get("config_format", "json") != "json":
        raise InvalidRequest("config_format can be json only", field="config_format")
    context = context_of(raw)
    return Response(
        msgspec.json.encode(server_facts(context.llm.config, context.config)), media_type="application/json"
    )


@router.post("/sleep", openapi_extra=query_docs(level={"enum": [0, 1, 2]}, mode={"enum": ["keep"]}))
async def sleep(raw: Request) -> Response:
    """Hold all requests until ``/wake_up``. Streams pause, and go on where they were.

    ``?level=1`` (the default) gives the KV cache's memory back, and on a GPU that of the weights, which go to main
    memory; 2 drops the weights, which ``/wake_up`` reads again; 0 gives nothing back. Needs ``--enable-sleep-mode``.
    """
    level = raw.query_params.get("level", "1")
    if raw.query_params.get("mode", "keep") != "keep":
        raise InvalidRequest("mode can be keep only: requests are kept until wake_up", field="mode")
    if level not in ("0", "1", "2"):
        raise InvalidRequest("level must be 0, 1 or 2", field="level")
    context = context_of(raw)
    with context.sleep_metrics.operation("sleep"):
        await context.llm.sleep(int(level))
    return Response()


@router.post("/release_kv_cache_memory")
async def release_kv_cache_memory(raw: Request) -> Response:
    """Hold all requests and give back the KV cache's memory alone, until ``/wake_up``. Needs ``--enable-sleep-mode``.

    Where it is away already, nothing changes.
    """
    context = context_of(raw)
    with context.sleep_metrics.operation("release_kv_cache_memory"):
        await context.llm.release_kv_cache_memory()
    return Response()


@router.post("/wake_up", openapi_extra=query_docs(tags={"type": "array", "items": {"enum": list(SLEEP_TAGS)}}))
async def wake_up(raw: Request) -> Response:
    """Go on. ``?tags=`` may name ``weights`` or ``kv_cache``: that alone comes back, and requests wait for the other.

    Where the weights' files cannot be read or there is too little memory, that is a 500 with the reason, the engine
    sleeps on, and may be woken again.
    """
    tags = raw.query_params.getlist("tags")
    check_tags(tags)
    context = context_of(raw)
    with context.sleep_metrics.operation("wake_up"):
        await context.llm.wake_up(tags or None)
    return Response()


@router.get("/is_sleeping")
async def is_sleeping(raw: Request) -> Response:
    """``is_sleeping``: whether requests are held."""
    return JSONResponse({"is_sleeping": await context_of(raw).llm.is_sleeping()})


@router.post("/collective_rpc", openapi_extra=body_docs(CollectiveRpcRequest, CollectiveRpcResults))
async def collective_rpc(raw: Request) -> Response:
    """Call a method of every worker between two steps: ``reload_weights``, or one of ``--worker-extension-cls``."""
    request = convert(parse_object(await read_json_body(raw)), CollectiveRpcRequest)
    if request.timeout is not None and not request.timeout > 0:
        raise InvalidRequest("timeout must be above 0", field="timeout")
    try:
        async with asyncio.timeout(request.timeout):
            results = await context_of(raw).llm.collective_rpc(request.method, request.args, request.kwargs)
    except TimeoutError as error:
        raise RequestFailed(f"{request.method} has not returned within {request.timeout:g} s") from error
    except RuntimeError as error:
        raise RequestFailed(f"{request.method} failed: {error}") from error
    body = msgspec.json.encode(CollectiveRpcResults(results), enc_hook=str)
    return Response(body, media_type="application/json")


@router.post("/reset_prefix_cache", openapi_extra=query_docs(reset_running_requests=FLAG, reset_external=FLAG))
async def reset_prefix_cache(raw: Request) -> Response:
    """Forget the cached prefixes, so that the next prompts are computed whole.

    Running requests keep their blocks, unless ``?reset_running_requests=true`` has them computed again, too.
    """
    if _flag(raw, "reset_external"):
        raise Unsupported(
            "reset_external is not supported: there is no cache outside of the engine", field="reset_external"
        )
    with_running = _flag(raw, "reset_running_requests")
    await context_of(raw).llm.call("reset_prefix_cache", *([True] if with_running else []))
    return Response()


def _flag(raw: Request, name: str) -> bool:
    """A parameter of the URL that is true or false. Raises ``InvalidRequest`` for any other word."""
    word = raw.query_params.get(name, "false").lower()
    if word not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name} must be true or false", field=name)
    return word in ("true", "1")
