"""What is different for a server that is one of several processes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm_engine.core.clients.attached import CoreAddress
    from vllm_engine.frontend.tally import SharedTable
    from vllm_server.siblings import Siblings
    from vllm_server.telemetry.told_counts import ToldCounts


class Signals(Protocol):
    """A context in which something sets ``stop``, and then perhaps ``stop_at_once``."""

    stop: asyncio.Event
    stop_at_once: asyncio.Event

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class OneOfSeveral:
    """The place of a process among its siblings.

    ``tell_listening`` says that requests are taken, and with which they may be tried; ``stay`` says that nothing runs
    here any more, and returns when that is so in all of them.
    """

    signals: Signals
    core: "CoreAddress"
    counts: "SharedTable"
    told_counts: "ToldCounts"
    siblings: "Siblings"
    tell_listening: Callable[[str, dict[str, Any]], None]
    stay: Callable[[], Awaitable[None]]
