"""Routes that FastAPI describes and Starlette calls."""

import inspect
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import request_response


class DirectRoute(APIRoute):
    """A route whose function takes the raw request and nothing else: it is called with that.

    FastAPI's way to a function, which looks for parameters and dependencies and keeps what they have opened, takes
    about 50 us even where there are none. A route with any goes that way all the same, and so does one of a router
    that is included: who includes it may add dependencies, such as the operator's lock.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.dependencies and len(inspect.signature(self.endpoint).parameters) == 1:
            self.app = request_response(self.endpoint)
