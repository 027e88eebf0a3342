"""Access control: without a key, a request learns whether the process lives, and nothing else."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_server.api_keys import ApiKeys, tenant_name
from vllm_server.errors import Forbidden, Unauthorized, error_response

PUBLIC_PATHS = frozenset({"/livez"})
"""What an orchestrator asks for that restarts a dead process, and may have no key."""

_ADMIN, _KNOWN = "admin", "known"


class AuthMiddleware:
    """Answers 401 to every request that has no valid key, whatever its method, unless its path is a public one.

    The exact paths that are open are listed, not those that are guarded: a path in an unusual spelling is guarded,
    and so is a route that somebody adds. A key comes as ``Authorization: Bearer KEY`` or as ``x-api-key: KEY``.
    Without ``keys``, all may pass. Keys of ``admin_keys`` open what ``keys`` open, and pass ``AdminOnly``.
    """

    def __init__(
        self, app: ASGIApp, keys: Iterable[str], admin_keys: Iterable[str] = (), root_path: str | None = None
    ) -> None:
        self.app = app
        keys = tuple(keys)
        self._locked = bool(keys)
        self._keys = ApiKeys(keys)
        self._admin_keys = ApiKeys(admin_keys)
        self._public = PUBLIC_PATHS | {f"{root_path or ''}{path}" for path in PUBLIC_PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await error_response(Unauthorized())(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # 1008: the policy forbids it

    def _may_pass(self, scope: Scope) -> bool:
        """Whether the request may go on; what its key is, if it has a valid one, is noted in its state."""
        if scope["type"] == "http" and scope["path"] in self._public:
            return True
        candidates = _candidates(scope["headers"])
        for keys, key_scope in ((self._admin_keys, _ADMIN), (self._keys, _KNOWN)):
            key = next((candidate for candidate in candidates if keys.has(candidate)), None)
            if key is not None:
                scope.setdefault("state", {}).update(tenant=tenant_name(key), key_scope=key_scope)
                return True
        return not self._locked


class AdminOnly:
    """A dependency of the routes for operators, so that it is the route that is guarded, however a path led to it.

    Raises ``Unauthorized`` without a key and ``Forbidden`` with one that is no admin's.
    """

    def __call__(self, raw: Request) -> None:
        key_scope = raw.scope.get("state", {}).get("key_scope")
        if key_scope is None:
            raise Unauthorized
        if key_scope != _ADMIN:
            raise Forbidden


def _candidates(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    found = []
    for name, value in headers:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(key.strip())
    return found
