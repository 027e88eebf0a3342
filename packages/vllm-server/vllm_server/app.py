"""The ASGI application: routes, error handlers and the request label, around one engine."""

import asyncio

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from vllm_engine import envs
from vllm_engine.config.profiling import profiler_in_force
from vllm_engine.errors import VllmError
from vllm_engine.logging import get_logger
from vllm_server import __version__
from vllm_server.access.auth import AdminOnly, AuthMiddleware
from vllm_server.access.cors import with_cors
from vllm_server.access.handing_on import HandOnMiddleware
from vllm_server.access.key_limits import KeyLimits
from vllm_server.access.recording import Observer, RecordMiddleware
from vllm_server.access.request_id import RequestIdMiddleware
from vllm_server.access.root_path import RootPathMiddleware
from vllm_server.access.tenant import TenantMiddleware
from vllm_server.access.user_middleware import load_middleware
from vllm_server.context import ServerContext
from vllm_server.errors import (
    handle_client_gone,
    handle_http_exception,
    handle_unexpected_error,
    handle_vllm_error,
)
from vllm_server.openapi import add_schemas
from vllm_server.routes import (
    chat,
    chat_batch,
    completions,
    dev,
    docs,
    health,
    invocations,
    load,
    messages,
    metrics,
    models,
    profile,
    responses,
    tokens,
)
from vllm_server.telemetry.error_log import ErrorLog, remembered
from vllm_server.telemetry.request_log import RequestLog

logger = get_logger(__name__)

# Most requests are for the first ones, and each is compared with all that stand before its own.
_ROUTES = (completions, chat, messages, responses, chat_batch, tokens, models, invocations, health, metrics)


def json_urls() -> tuple[str, ...]:
    """Where JSON is posted and JSON comes back: the routes that a line of a batch may name."""
    routes = [route for module in _ROUTES for route in module.router.routes if isinstance(route, APIRoute)]
    posted = [route for route in routes if "POST" in (route.methods or ()) and not route.param_convertors]
    urls = [route.path for route in posted if "requestBody" in (route.openapi_extra or {})]
    return tuple(sorted(url for url in urls if url.startswith("/v1/")))


def build_app(context: ServerContext) -> ASGIApp:
    """The application that serves ``context``. It starts and stops nothing: the engine runs already.

    From outside, a request meets CORS, its label, access control, the operator's middleware, and the routes: browsers
    can read every answer, every answer has a label, and the middleware sees only what may come in.
    """
    config = context.config
    described = not config.disable_fastapi_docs
    usual = not config.enable_offline_docs  # pages that are scripts from another host
    app = FastAPI(
        title="vllm-server",
        version=__version__,
        openapi_url="/openapi.json" if described else None,
        docs_url="/docs" if usual else None,
        redoc_url="/redoc" if usual else None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are at hand: --otlp-traces-endpoint
    )
    app.state.context = context
    for routes in _ROUTES:
        app.router.routes.extend(routes.router.routes)  # an included router would be searched twice for each request
    if config.enable_offline_docs:
        app.include_router(docs.router)
    if config.enable_tokenizer_info_endpoint:
        app.include_router(tokens.info_router)
    if config.enable_server_load_tracking:
        app.include_router(load.router)
    operators = [Depends(AdminOnly())] if config.admin_api_key else []
    if profiler_in_force(context.llm.config.profiler) is not None:
        app.include_router(profile.router, dependencies=operators)
    if envs.get("VLLM_SERVER_DEV_MODE"):
        if not config.admin_api_key:
            logger.warning("VLLM_SERVER_DEV_MODE: whoever may call this server may also reset what its requests share")
        app.include_router(dev.router, dependencies=operators)
    add_schemas(app)
    app.add_exception_handler(VllmError, remembered(handle_vllm_error))
    app.add_exception_handler(ClientDisconnect, handle_client_gone)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(Exception, handle_unexpected_error)
    for middleware in load_middleware(config.middleware):
        app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
    limits = _key_limits(context)
    known = TenantMiddleware(app, limits)
    guarded = AuthMiddleware(known, config.api_key or (), config.admin_api_key or (), config.root_path)
    whole = _recorded(with_cors(RequestIdMiddleware(guarded), config), context)
    whole = RootPathMiddleware(whole, config.root_path) if config.root_path else whole
    return whole if context.siblings is None else HandOnMiddleware(whole, context.siblings, config.root_path)


def _key_limits(context: ServerContext) -> KeyLimits:
    config = context.config
    most = config.max_concurrency_per_key, config.max_tokens_per_minute_per_key
    if context.counts is None:
        return KeyLimits(*most)
    limits = KeyLimits(*most, running=context.counts.tally("running"), charged=context.counts.tally("charged"))
    loop = asyncio.get_running_loop()

    def take_in() -> None:
        limits.take_in()
        loop.call_later(1.0, take_in)

    take_in()
    return limits


def _recorded(app: ASGIApp, context: ServerContext) -> ASGIApp:
    """``app`` with a record of each request for those who want to be told of it."""
    config = context.config
    followers: list[Observer] = [ErrorLog()] if config.log_error_stack else []
    log = None
    if context.llm.config.async_engine.enable_log_requests:
        log = RequestLog(outputs=config.enable_log_outputs, deltas=config.enable_log_deltas, max_len=config.max_log_len)
        followers.append(log)
    listener = log if config.enable_log_outputs else None
    return RecordMiddleware(app, [context.http_metrics], followers, listener, context.tracer)
