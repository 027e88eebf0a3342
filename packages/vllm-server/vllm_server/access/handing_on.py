"""Requests about a response go to the process that keeps it."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_server.response_store import ID_OF_PROCESS
from vllm_server.siblings import Siblings


class HandOnMiddleware:
    """Stands before everything else: the other process does it all, access control included.

    Only paths that are spelled like the route's are looked at; any other is this process's own to refuse. So is a
    response whose process is not there: it is not known any more.
    """

    def __init__(self, app: ASGIApp, siblings: Siblings, root_path: str | None) -> None:
        self.app = siblings.app = app
        self._siblings = siblings
        self._path = re.compile(rf"(?:{re.escape(root_path or '')})?/v1/responses/{ID_OF_PROCESS}(?:/[a-z_]+)?")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._path.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or not await self._siblings.hand_on(int(found["process"]), scope, receive, send):
            await self.app(scope, receive, send)
