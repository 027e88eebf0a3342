"""The bounded queue: exact counts of what is taken and what is refused."""

import msgspec
import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.errors import Overloaded
from vllm_engine.frontend.admission import MAX_RETRY_SECONDS, Admission
from vllm_engine.messages import EngineRequest, RequestUpdate
from vllm_engine.params import SamplingParams


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(requests: int, tokens: int = 0, clock: Clock | None = None) -> Admission:
    config = SchedulerConfig(max_num_queued_reqs=requests, max_num_queued_tokens=tokens)
    return Admission(config, 2, clock=clock or Clock())


def request(name: str, length: int) -> EngineRequest:
    return EngineRequest(name, [1] * length, SamplingParams(), 4, 0, [], [], [])


def test_as_many_requests_are_taken_as_run_and_may_wait() -> None:
    queue = admission(3)
    for _ in range(3):
        queue.take(1)
    queue.take(2)
    with pytest.raises(Overloaded, match="5 requests run or wait, and it takes 5"):
        queue.take(1)
    queue.leave(2, ())
    with pytest.raises(Overloaded):
        queue.take(3)
    queue.take(2)
    queue.leave(5, ())
    assert queue.num_requests == 0
    assert queue.num_rejected == {"max_num_queued_reqs": 2, "max_num_queued_tokens": 0}


def test_without_limits_everything_is_taken() -> None:
    queue = admission(0)
    queue.take(10**9)
    queue.enqueue([request("a", 10_000)])
    queue.enqueue([request("b", 10_000)])
    assert queue.num_queued_tokens == 20_000


def test_tokens_wait_until_the_first_update_of_their_request() -> None:
    queue = admission(0, 100)
    queue.enqueue([request("long", 300)])  # nothing else waits
    with pytest.raises(Overloaded, match="prompts of 300 tokens wait, and no more than 100"):
        queue.enqueue([request("a", 1)])
    queue.on_updates([RequestUpdate("long", [7]), RequestUpdate("unknown", [7])])
    queue.enqueue([request("a", 40), request("b", 60)])
    with pytest.raises(Overloaded):
        queue.enqueue([request("c", 1)])
    queue.leave(1, [request("a", 40)])  # it was aborted
    queue.enqueue([request("c", 40)])
    assert queue.num_queued_tokens == 100
    queue.on_updates([RequestUpdate(name, [7]) for name in "bc"])
    queue.leave(2, [request("b", 60), request("c", 40)])
    assert queue.num_queued_tokens == 0
    assert queue.num_rejected == {"max_num_queued_reqs": 0, "max_num_queued_tokens": 2}


def retry_after(queue: Admission) -> float:
    with pytest.raises(Overloaded) as caught:
        queue.take(10**6)
    return caught.value.retry_after


def test_a_client_is_told_to_come_back_when_half_of_the_queue_will_have_passed() -> None:
    clock = Clock()
    queue = admission(1000, clock=clock)
    queue.take(100)
    assert retry_after(queue) == 1
    for _ in range(20):  # two a second
        clock.now += 0.5
        queue.leave(1, [request("a", 1)])
    assert queue.num_requests == 80
    assert retry_after(queue) == pytest.approx(20)
    clock.now += 10_000
    assert retry_after(queue) == MAX_RETRY_SECONDS


def test_with_fair_shares_a_flood_keeps_nobody_else_out() -> None:
    config = SchedulerConfig(max_num_queued_reqs=10, max_num_queued_tokens=100, scheduling_policy="fair")
    queue = Admission(config, 2, clock=Clock())
    for _ in range(12):
        queue.take(1, "heavy")
    with pytest.raises(Overloaded):
        queue.take(1, "heavy")
    for _ in range(6):
        queue.take(1, "light")
    with pytest.raises(Overloaded):
        queue.take(1, "light")
    for _ in range(4):
        queue.take(1, "third")
    with pytest.raises(Overloaded):
        queue.take(1, "third")
    heavy = [msgspec.structs.replace(request(f"h{index}", 50), tenant="heavy") for index in range(3)]
    light = [msgspec.structs.replace(request(f"l{index}", 50), tenant="light") for index in range(2)]
    queue.enqueue(heavy[:2])
    with pytest.raises(Overloaded):
        queue.enqueue(heavy[2:])
    queue.enqueue(light[:1])
    with pytest.raises(Overloaded):
        queue.enqueue(light[1:])
    queue.on_updates([RequestUpdate("h0", [7]), RequestUpdate("l0", [7])])
    queue.enqueue(heavy[2:])
    assert queue.num_queued_tokens == 100
    queue.leave(12, heavy, "heavy")
    queue.leave(6, light, "light")
    queue.leave(4, (), "third")
    assert queue.num_requests == queue.num_queued_tokens == queue.num_tenants == 0
