"""``--middleware``: the operator's own code between the server and its routes."""

import inspect
from collections.abc import Iterable
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from vllm_engine.config.import_path import load_object
from vllm_engine.errors import ConfigError


def load_middleware(paths: Iterable[str]) -> list[Middleware]:
    """What ``paths`` name, in their order.

    Args:
        paths: each ``package.module.Name`` or ``package.module:Name``; a class that takes the application and is an
            ASGI application itself, or a coroutine function of a request and ``call_next`` that returns a response.

    Raises:
        ConfigError: for what cannot be imported or is neither of the two.
    """
    return [_middleware(path, load_object("middleware", path)) for path in paths]


def _middleware(path: str, found: Any) -> Middleware:
    if inspect.isclass(found):
        if not any("__call__" in base.__dict__ for base in found.__mro__):
            raise _error(path, "is a class without __call__, so no ASGI application")
        if not _takes(found, 1):
            raise _error(path, "must be made from the application alone: its other parameters need defaults")
        made: Any = found
        return Middleware(made)
    if inspect.iscoroutinefunction(found):
        if not _takes(found, 2):
            raise _error(path, "must take two parameters, the request and call_next")
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise _error(path, "is neither a class nor a coroutine function")


def _takes(called: Any, count: int) -> bool:
    """Whether it can be called with ``count`` positional arguments, as far as it tells."""
    try:
        inspect.signature(called).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature
        pass
    return True


def _error(path: str, fault: str) -> ConfigError:
    return ConfigError(f"middleware: {path} {fault}", field="middleware")
