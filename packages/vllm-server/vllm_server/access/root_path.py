"""Behind a proxy that publishes the server under a path prefix."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPathMiddleware:
    """Tells the application its prefix. Requests are understood with and without it, as proxies do it either way."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"] = self._root_path
        await self.app(scope, receive, send)
