"""Wire types of routes for development."""

from typing import Any

import msgspec


class CollectiveRpcRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A method of the workers, such as ``reload_weights``. ``timeout`` is in seconds; without, any time is fine."""

    method: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    timeout: float | None = None


class CollectiveRpcResults(msgspec.Struct):
    """What the workers returned, one by one; what is no JSON, as text."""

    results: list[Any]
