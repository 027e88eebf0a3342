"""Which of several clients a message of the core is for. The core itself knows of no clients."""

import time
from collections.abc import Callable, Iterable

from vllm_engine.messages import (
    AbortRequests,
    AddRequests,
    ClientGone,
    EngineFailed,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FromCore,
    Hello,
    RequestUpdate,
    SchedulerStats,
    Shutdown,
    ToCore,
)

PARENT = ""
"""The client that started the core, and alone ends it."""
STATS_SECONDS = 0.1
"""A client whose requests a step did not touch hears of the scheduler at least so often while there are steps."""


class Routing:
    """Stands between one core and its clients.

    A request belongs to who added it: its updates go there only, and nobody else can abort it. Answers to calls and
    pings go to who asked. A client that has said ``Hello`` hears of the scheduler, too: with its updates, every
    ``STATS_SECONDS``, and at once when the last request has ended, while the core sleeps and when it wakes. When the
    parent tells that a client is gone, its requests end at once, and what it still had on its way is ignored: names of
    clients are never used again.
    """

    def __init__(self, send: Callable[[str, FromCore], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            send: hands a message to a client by its name.
            clock: seconds.
        """
        self._send = send
        self._clock = clock
        self._owner: dict[str, str] = {}  # client by request id
        self._told: dict[str, float] = {}  # when each that said hello heard of the scheduler
        self._gone: set[str] = set()
        self._caller = PARENT
        self._ready: EngineReady | None = None
        self._stats = SchedulerStats()

    @property
    def num_requests(self) -> int:
        """Requests that somebody waits for."""
        return len(self._owner)

    def take(self, client: str, message: ToCore) -> ToCore | None:
        """What the core has to do about a message of a client; None is nothing.

        Until the next call, answers of the core are for this client: it handles one message at a time.
        """
        if client in self._gone or (client != PARENT and isinstance(message, Shutdown | ClientGone)):
            return None
        self._caller = client
        if isinstance(message, AddRequests):
            return self._add(client, message)
        if isinstance(message, AbortRequests):
            return self._abort(one for one in message.request_ids if self._owner.get(one) == client)
        if isinstance(message, Hello):
            self._told[client] = self._clock()
            if self._ready is not None:
                self._send(client, self._ready)
                self._send(client, EngineOutputs([], self._clock(), self._stats))
            return None
        if isinstance(message, ClientGone):
            self._gone.add(message.client)
            self._told.pop(message.client, None)
            return self._abort(one for one, owner in self._owner.items() if owner == message.client)
        return message

    def give(self, message: FromCore) -> None:
        """Send a message of the core to whom it is for."""
        if isinstance(message, EngineOutputs):
            self._share_out(message)
        elif isinstance(message, EngineReady | EngineFailed):
            if isinstance(message, EngineReady):
                self._ready = message
            for client in (PARENT, *self._told):
                self._send(client, message)
        else:
            self._send(self._caller, message)

    def _add(self, client: str, message: AddRequests) -> ToCore | None:
        known = [request for request in message.requests if request.request_id in self._owner]
        if known:
            self._refuse(client, known)
            message = AddRequests(
                [request for request in message.requests if request.request_id not in self._owner],
                message.shared_embeds,
            )
        for request in message.requests:
            self._owner[request.request_id] = client
        return message if message.requests else None

    def _refuse(self, client: str, requests: list[EngineRequest]) -> None:
        """The core would refuse them, too, but its answer would look like one about the request of that id."""
        updates = [
            RequestUpdate(request.request_id, [], finish_reason="error", error="request id is already in use")
            for request in requests
        ]
        self._send(client, EngineOutputs(updates, self._clock(), self._stats))

    def _abort(self, request_ids: Iterable[str]) -> ToCore | None:
        ids = list(request_ids)
        for request_id in ids:
            del self._owner[request_id]
        return AbortRequests(ids) if ids else None

    def _share_out(self, outputs: EngineOutputs) -> None:
        stats = outputs.stats
        # Asleep or without work, the core says nothing more until somebody does something: this may be the last word.
        is_asleep = stats.sleep_level is not None or self._stats.sleep_level is not None
        is_news = is_asleep or not (stats.num_running or stats.num_waiting)
        self._stats = stats
        updates: dict[str, list[RequestUpdate]] = {}
        for update in outputs.updates:
            owner = self._owner.get(update.request_id)
            if owner is None:
                continue
            updates.setdefault(owner, []).append(update)
            if update.finish_reason is not None:
                del self._owner[update.request_id]
        now = self._clock()
        for client, told in self._told.items():
            if client not in updates and (is_news or now - told >= STATS_SECONDS):
                updates[client] = []
        for client, part in updates.items():
            if client in self._told:
                self._told[client] = now
            self._send(client, EngineOutputs(part, outputs.timestamp, stats))
