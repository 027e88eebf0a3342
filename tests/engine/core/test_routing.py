"""Several clients of one core: who gets which message, held to a table of what each had asked for."""

import pytest

from vllm_engine.core.routing import PARENT, STATS_SECONDS, Routing
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
    Ping,
    Pong,
    RequestUpdate,
    RpcCall,
    RpcResult,
    SchedulerStats,
    Shutdown,
)
from vllm_engine.params import SamplingParams


class Sent:
    """A routing whose messages and time are looked at and set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.messages: list[tuple[str, FromCore]] = []
        self.routing = Routing(lambda client, message: self.messages.append((client, message)), clock=lambda: self.now)

    def give(self, message: FromCore) -> dict[str, FromCore]:
        """What each client got of a message."""
        self.messages.clear()
        self.routing.give(message)
        assert len(dict(self.messages)) == len(self.messages)
        return dict(self.messages)

    def step(self, *updates: RequestUpdate, running: int = 1) -> dict[str, list[str]]:
        """Which requests each client hears of after a step."""
        given = self.give(EngineOutputs(list(updates), 1.0, SchedulerStats(num_running=running)))
        return {name: [one.request_id for one in part.updates] for name, part in given.items()}  # type: ignore[union-attr]


@pytest.fixture
def sent() -> Sent:
    sent = Sent()
    for name in ("a", "b"):
        sent.routing.take(name, Hello())
    return sent


def add(*names: str) -> AddRequests:
    params = SamplingParams()
    return AddRequests([EngineRequest(name, [1], params, 4, 0, [], [], []) for name in names])


def update(name: str, *, ends: bool = False) -> RequestUpdate:
    return RequestUpdate(name, [1], "length" if ends else None)


def test_updates_go_to_who_asked_and_statistics_to_everybody_now_and_then(sent: Sent) -> None:
    sent.routing.take("a", add("a1", "a2"))
    sent.routing.take("b", add("b1"))
    assert sent.step(update("a1"), update("b1"), update("a2")) == {"a": ["a1", "a2"], "b": ["b1"]}
    assert sent.step(update("a1", ends=True)) == {"a": ["a1"]}
    assert sent.routing.num_requests == 2
    sent.now += 2 * STATS_SECONDS
    assert sent.step(update("a2")) == {"a": ["a2"], "b": []}
    assert sent.step(update("a2"), update("unknown")) == {"a": ["a2"]}
    # Nothing runs any more: the gauges of all are right at once.
    assert sent.step(update("a2", ends=True), update("b1", ends=True), running=0) == {"a": ["a2"], "b": ["b1"]}
    assert sent.step(running=0) == {"a": [], "b": []}
    assert sent.routing.num_requests == 0
    # Nor is anybody left to think that the core is awake.
    asleep = EngineOutputs([], 1.0, SchedulerStats(num_waiting=3, sleep_level=1))
    assert sent.give(asleep).keys() == {"a", "b"}
    # Asleep, it says something only when somebody came or went, and no later step makes up for what was not told.
    assert sent.give(asleep).keys() == {"a", "b"}


def test_nobody_aborts_or_takes_over_the_request_of_another(sent: Sent) -> None:
    sent.routing.take("a", add("x"))
    assert sent.routing.take("b", AbortRequests(["x", "y"])) is None
    sent.messages.clear()
    taken = sent.routing.take("b", add("x", "z"))
    assert isinstance(taken, AddRequests) and [one.request_id for one in taken.requests] == ["z"]
    ((client, refusal),) = sent.messages
    assert client == "b" and isinstance(refusal, EngineOutputs)
    assert [(one.request_id, one.finish_reason) for one in refusal.updates] == [("x", "error")]
    assert sent.step(update("x"), update("z")) == {"a": ["x"], "b": ["z"]}
    assert sent.routing.take("a", AbortRequests(["x", "z"])) == AbortRequests(["x"])
    assert sent.step(update("x"), update("z")) == {"b": ["z"]}


def test_answers_go_to_who_asked(sent: Sent) -> None:
    for client in ("a", "b", PARENT):
        sent.routing.take(client, Ping())
        assert sent.give(Pong()) == {client: Pong()}
        sent.routing.take(client, RpcCall(7, "sleep"))
        assert sent.give(RpcResult(7)) == {client: RpcResult(7)}


def test_a_client_that_is_gone_is_forgotten_with_all_that_it_asked_for(sent: Sent) -> None:
    sent.routing.take("a", add("a1", "a2"))
    sent.routing.take("b", add("b1"))
    assert sent.routing.take("b", ClientGone("a")) is None  # only the parent knows
    assert sent.routing.take(PARENT, ClientGone("a")) == AbortRequests(["a1", "a2"])
    assert sent.routing.take("a", add("late")) is None
    assert sent.routing.take(PARENT, ClientGone("a")) is None
    sent.now += 2 * STATS_SECONDS
    assert sent.step(update("a1"), update("late")) == {"b": []}


def test_all_hear_of_beginning_and_end_and_only_the_parent_ends(sent: Sent) -> None:
    ready = EngineReady(1, 2, 3, 4, {})
    assert sent.give(ready) == {PARENT: ready, "a": ready, "b": ready}
    sent.messages.clear()
    assert sent.routing.take("late", Hello()) is None
    assert [client for client, _ in sent.messages] == ["late", "late"]
    assert sent.messages[0][1] == ready and isinstance(sent.messages[1][1], EngineOutputs)
    assert sent.routing.take("a", Shutdown()) is None
    assert sent.routing.take(PARENT, Shutdown()) == Shutdown()
    assert set(sent.give(EngineFailed("x"))) == {PARENT, "a", "b", "late"}
