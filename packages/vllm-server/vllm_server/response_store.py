"""The responses that clients may ask for again: bounded memory, and each belongs to the tenant that made it."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import msgspec

from vllm_engine import envs
from vllm_engine.errors import InvalidRequest, NotFound, Overloaded

MAX_RESPONSES = 4096
MAX_BYTES = 256 * 2**20
"""Bounds of the store: how many responses, and how many bytes of JSON."""
_PREFIX = "resp_"
ID_OF_PROCESS = rf"{_PREFIX}[0-9a-f]{{32}}p(?P<process>[0-9]{{1,4}})"
"""Pattern of the ids of responses that one of several processes keeps: they end in its number."""
_SHOWN_CHARS = 100


class SharedResponse(msgspec.Struct, array_like=True):
    """What another process needs of a response, to go on from it."""

    tenant: str
    items: bytes
    body: bytes
    ended: bool


@dataclass(kw_only=True, eq=False)
class KeptResponse:
    """One response that is kept.

    ``items`` is the JSON of what the model read, as a list of items; ``body`` the JSON of the response as it is now.
    ``events``, where its stream is kept, has one block for each event; an event's number is its place. ``task`` makes
    the answer where that happens in the background.
    """

    id: str
    tenant: str
    items: bytes
    body: bytes = b""
    background: bool = False
    events: list[bytes] | None = None
    ended: bool = False
    task: "asyncio.Task[None] | None" = None
    size: int = 0
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """Blocks of events from number ``start`` on, as they come, until the last one."""
        while True:
            change = self._change
            block = (self.events or [])[start:]
            if block:
                start += len(block)
                yield b"".join(block)
            elif self.ended:
                return
            else:
                await change.wait()

    def tell(self) -> None:
        """Wake up those who follow."""
        self._change.set()
        self._change = asyncio.Event()


class ResponseStore:
    """See the module. Responses that have ended make room for others, the oldest first; those that run stay.

    A response's id is made here, and only here is it looked for.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        most: int = MAX_RESPONSES,
        most_bytes: int = MAX_BYTES,
        process: int | None = None,
    ) -> None:
        """``enabled``: whether anything is kept at all. ``process``: number of this one among several."""
        self._suffix = "" if process is None else f"p{process}"
        self.enabled = enabled
        self._most = most
        self._most_bytes = most_bytes
        self._kept: dict[str, KeptResponse] = {}
        self._ended: dict[str, KeptResponse] = {}  # in the order in which they ended
        self._bytes = 0

    @classmethod
    def from_environment(cls, process: int | None = None) -> "ResponseStore":
        """A store, unless ``VLLM_ENABLE_RESPONSES_API_STORE`` says that nothing is kept."""
        return cls(enabled=envs.get("VLLM_ENABLE_RESPONSES_API_STORE"), process=process)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    def new_id(self) -> str:
        """An id for a response."""
        return f"{_PREFIX}{uuid.uuid4().hex}{self._suffix}"

    def check_enabled(self, field: str) -> None:
        """Raises ``InvalidRequest`` naming ``field``, which asks for what is kept, where nothing is."""
        if not self.enabled:
            reason = "no answers are kept here (for servers, VLLM_ENABLE_RESPONSES_API_STORE decides that)"
            raise InvalidRequest(f"{field} is not supported: {reason}", field=field)

    def find(self, response_id: str, tenant: str, field: str = "response_id") -> KeptResponse:
        """The response of this id. Raises ``NotFound`` when there is none, or it is another tenant's."""
        kept = self._kept.get(response_id)
        if kept is None or kept.tenant != tenant:
            shown = ascii(response_id)[1:-1]
            shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."
            raise NotFound(f"There is no response {shown!r} here; the oldest ones are forgotten.", field=field)
        return kept

    def shared(self, response_id: str) -> bytes:
        """A response for another process, which must hold it against its tenant; empty when there is none."""
        kept = self._kept.get(response_id)
        if kept is None:
            return b""
        return msgspec.msgpack.encode(SharedResponse(kept.tenant, kept.items, kept.body, kept.ended))

    def add(self, kept: KeptResponse) -> None:
        """Keep a response from now on. Raises ``Overloaded`` when those that run leave no room for one that runs."""
        self._kept[kept.id] = kept
        if not self.update(kept):
            self.drop(kept)
            raise Overloaded("So many responses run in the background that there is no room to keep another one.")

    def update(self, kept: KeptResponse, events: Sequence[bytes] = ()) -> bool:
        """Take in that a response has changed, and the events that are new.

        False when it still runs, and there is no room for it any more.
        """
        size = kept.size + sum(map(len, events)) if events else self._size(kept)
        if kept.events is not None:
            kept.events += events
        kept.tell()
        if self._kept.get(kept.id) is not kept:
            return True
        self._bytes += size - kept.size
        kept.size = size
        if kept.ended:
            self._ended.setdefault(kept.id, kept)
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            if not self._ended:
                return False
            self.drop(next(iter(self._ended.values())))
        return True

    def drop(self, kept: KeptResponse) -> None:
        """Forget a response. Whoever follows it still gets its end."""
        if self._kept.get(kept.id) is kept:
            del self._kept[kept.id]
            self._ended.pop(kept.id, None)
            self._bytes -= kept.size

    @staticmethod
    def _size(kept: KeptResponse) -> int:
        return len(kept.items) + len(kept.body) + sum(map(len, kept.events or ()))
