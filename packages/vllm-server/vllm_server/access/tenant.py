"""Who asks: the digest of the key that a request came with, for fair shares and limits of keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind
from vllm_server.access.key_limits import KeyLimits


@dataclass(frozen=True)
class Tenant:
    """One key and its limits. The name is empty where requests need no key: then all are one tenant."""

    name: str = ""
    limits: KeyLimits = field(default_factory=KeyLimits)

    @contextmanager
    def request(self) -> Iterator["TokenMeter"]:
        """While one request is served. Raises ``RateLimited`` when the key may not have another."""
        self.limits.enter(self.name)
        try:
            yield TokenMeter(self)
        finally:
            self.limits.leave(self.name)


class TokenMeter:
    """Charges a tenant for the tokens of one HTTP request, each once, as outputs tell of them."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant
        self._seen: set[int] = set()

    def count(self, index: int, output: RequestOutput, kind: OutputKind) -> None:
        """Take in an output of prompt ``index``; outputs are deltas, or there is only the last one."""
        if not self._tenant.limits.counts_tokens:
            return
        tokens = 0
        if index not in self._seen:
            self._seen.add(index)
            tokens += len(output.prompt_token_ids)
        if kind is OutputKind.DELTA or output.finished:
            tokens += sum(len(completion.token_ids) for completion in output.outputs)
        self._tenant.limits.charge(self._tenant.name, tokens)


_current: ContextVar[Tenant] = ContextVar("tenant")


def current_tenant() -> Tenant:
    """Who has sent the request that is being served. One without limits outside of the HTTP server."""
    tenant = _current.get(None)
    return Tenant() if tenant is None else tenant


class TenantMiddleware:
    """Lets the routes know whose request they serve, by what access control found out."""

    def __init__(self, app: ASGIApp, limits: KeyLimits) -> None:
        self.app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope.get("state", {}).get("tenant", "")
        token = _current.set(Tenant(name, self._limits))
        try:
            await self.app(scope, receive, send)
        finally:
            _current.reset(token)
