"""CORS: which pages in a browser may call the server. It has no say over programs that are no browsers."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from vllm_server.config import ServerConfig


def with_cors(app: ASGIApp, config: ServerConfig) -> ASGIApp:
    """``app`` with the headers that browsers ask for, on errors too: a page cannot read an answer without them.

    It answers preflight requests by itself; these carry no key, as the browser sends none with them.
    """
    return CORSMiddleware(
        app,
        allow_origins=config.allowed_origins,
        # Browsers ask in capitals.
        allow_methods=[method.upper() for method in config.allowed_methods],
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
    )
