"""A light tenant beside one that floods: steps of the scheduler in virtual time, so every figure is exact."""

import random
from collections.abc import Iterator

import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.policies import recent_use
from vllm_engine.core.policies.fair import MOST_STEPS_BACK
from vllm_engine.core.policies.recent_use import LEAST_STEP_TOKENS, MAX_TENANTS, WINDOW_SECONDS, RecentUse
from vllm_engine.execution.batch import BatchResult, ScheduledBatch

from .harness import Harness, engine_request

STEP_SECONDS, TOKEN_SECONDS = 0.008, 0.0004
"""What a step takes by itself, and for each token: two cores and a model of some 80 million weights."""
LEAST = LEAST_STEP_TOKENS["cpu"]
BUDGET = 2048
LIGHT = (128, 8)
FLOODS = {"decode": (64, 32, 256), "prefill": (24, 1024, 4), "both": (48, 384, 64)}
"""Requests at a time, tokens of a prompt and of its answer."""


class VirtualServer:
    """A scheduler whose steps take time by their tokens. ``flood`` is a closed loop of the tenant ``heavy``."""

    def __init__(self, policy: str = "fair", flood: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.now = 0.0
        self.scheduler = Harness(
            config=SchedulerConfig(scheduling_policy=policy),  # type: ignore[arg-type]
            num_blocks=4000,
            block_size=16,
            budget=BUDGET,
            max_num_seqs=256,
            max_model_len=2048,
            clock=lambda: self.now,
        ).scheduler
        self.rng = random.Random(0)
        self.flood = flood
        self.batches: list[ScheduledBatch] = []
        self.sent: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        for _ in range(flood[0]):
            self.send("heavy", *flood[1:])

    def send(self, tenant: str, length: int, max_tokens: int) -> str:
        name = f"{tenant}-{len(self.sent)}"
        self.sent[name] = self.now
        prompt = [self.rng.randrange(50) for _ in range(length)]
        self.scheduler.add(engine_request(name, prompt, max_tokens, tenant=tenant))
        return name

    def step(self) -> ScheduledBatch:
        running = self.scheduler._requests
        batch = self.scheduler.schedule()
        self.batches.append(batch)
        self.now += STEP_SECONDS + TOKEN_SECONDS * batch.total_num_tokens
        done = [name for name in batch.num_scheduled_tokens if running[name].num_unknown_tokens]
        for update in self.scheduler.update(batch, BatchResult(sampled={name: [7] for name in done})):
            self.waits.setdefault(update.request_id, self.now - self.sent[update.request_id])
            if update.finish_reason is not None and update.request_id.startswith("heavy"):
                self.send("heavy", *self.flood[1:])
        return batch

    def run_until(self, moment: float) -> None:
        while self.now < moment and self.scheduler.has_unfinished():
            self.step()
        self.now = max(self.now, moment)

    def tokens(self, batch: ScheduledBatch, tenant: str) -> list[int]:
        """Of the requests of a tenant in a batch."""
        return [count for name, count in batch.num_scheduled_tokens.items() if name.startswith(f"{tenant}-")]

    def light_waits(self, count: int) -> list[float]:
        """Seconds to the first tokens of requests at random moments, sorted; the first ones make it known."""
        rng = random.Random(1)
        names, warm = [], 10
        for _ in range(warm + count):
            self.run_until(self.now + rng.expovariate(2.0))
            names.append(self.send("light", *LIGHT))
        self.run_until(self.now + 30)
        return sorted(self.waits[name] for name in names[warm:])


def p99(waits: list[float]) -> float:
    return waits[int(0.99 * len(waits))]


@pytest.mark.parametrize("kind", FLOODS)
def test_a_light_tenants_first_tokens_take_at_most_twice_as_long_beside_a_flood(kind: str) -> None:
    alone = p99(VirtualServer().light_waits(100))
    server = VirtualServer(flood=FLOODS[kind])
    assert p99(server.light_waits(100)) <= 2 * alone
    # Nobody pays much for it: as many tokens a second as with the policy that looks at nobody.
    first_come = VirtualServer("fcfs", FLOODS[kind])
    first_come.run_until(20)
    speed, full = (sum(batch.total_num_tokens for batch in one.batches) / one.now for one in (server, first_come))
    assert speed > 0.75 * full


def test_steps_are_short_from_a_light_tenants_first_request_until_it_is_forgotten() -> None:
    server = VirtualServer(flood=FLOODS["prefill"])
    server.run_until(5)
    assert {batch.total_num_tokens for batch in server.batches[1:]} == {BUDGET}
    name = server.send("light", *LIGHT)
    server.step()
    assert server.waits[name] == pytest.approx(STEP_SECONDS + TOKEN_SECONDS * server.batches[-1].total_num_tokens)
    assert server.tokens(server.batches[-1], "light") == [LIGHT[0]]
    assert set(server.tokens(server.batches[-1], "heavy")) == {1}  # part-way prompts, which go on
    first = len(server.batches)
    server.run_until(server.now + WINDOW_SECONDS)
    assert max(batch.total_num_tokens for batch in server.batches[first:]) <= LIGHT[0] + server.flood[0]
    server.run_until(server.now + WINDOW_SECONDS + 5)
    assert server.step().total_num_tokens == BUDGET


def test_heavy_tenants_that_generate_stand_back_for_light_prompts_but_not_for_long() -> None:
    server = VirtualServer(flood=(8, 32, 500))
    for _ in range(50):
        server.step()
    for number in range(40):  # there is always one of a light tenant
        server.send(f"light{number}", 100, 2)
        server.step()
    heavy = [len(server.tokens(batch, "heavy")) for batch in server.batches[50:]]
    assert heavy.count(0) > 20
    assert all(max(heavy[first : first + MOST_STEPS_BACK + 1]) == 8 for first in range(40 - MOST_STEPS_BACK))


def test_a_newcomer_that_floods_gets_its_share_and_no_more() -> None:
    server = VirtualServer(flood=(100, 256, 4))
    server.run_until(50)
    for _ in range(200):
        server.send("new", 256, 4)
    first = len(server.batches)
    server.run_until(server.now + 20)
    heavy, new = (sum(sum(server.tokens(batch, one)) for batch in server.batches[first:]) for one in ("heavy", "new"))
    assert heavy == pytest.approx(new, rel=0.15)


def test_without_chunks_nothing_is_cut() -> None:
    harness = Harness(
        config=SchedulerConfig(scheduling_policy="fair", enable_chunked_prefill=False), budget=256, max_model_len=256
    )
    harness.scheduler.add(engine_request("light", [1] * 4, 2, tenant="light"))
    harness.scheduler.add(engine_request("heavy0", [2] * 120, 2, tenant="heavy"))
    harness.scheduler.add(engine_request("heavy1", [3] * 120, 2, tenant="heavy"))
    harness.run()
    assert len(harness.updates["heavy0"]) == len(harness.updates["heavy1"]) == 2


@pytest.fixture
def clock() -> Iterator[list[float]]:
    yield [0.0]


def test_heavy_is_who_had_more_than_an_even_share_within_the_last_minutes(clock: list[float]) -> None:
    use = RecentUse(LEAST, lambda: clock[0])
    use.charge("a", 100)
    assert not use.is_heavy("a")  # of one tenant, all is an even share
    for name, cost in (("b", 30), ("c", 20)):
        use.charge(name, cost)
    assert [name for name in "abc" if use.is_heavy(name)] == ["a"]
    use.charge("b", 30)
    assert [name for name in "abc" if use.is_heavy(name)] == ["a"]  # 60 of 180 is even
    clock[0] = WINDOW_SECONDS
    use.forget()
    use.charge("c", 100)
    assert [name for name in "abc" if use.is_heavy(name)] == ["a", "c"]
    clock[0] = 2 * WINDOW_SECONDS
    use.forget()
    assert not use.is_heavy("c") and use.any_light(lambda name: True) is False  # it is the only one left


def test_a_step_is_as_long_as_light_prompts_and_never_next_to_nothing(clock: list[float]) -> None:
    use = RecentUse(LEAST, lambda: clock[0])
    use.charge("a", 0)
    use.note_light_prompt(5000)  # there is nobody to be lighter than
    use.charge("b", 0)
    assert use.heavy_tokens(0) == LEAST
    use.note_light_prompt(500)
    assert (use.heavy_tokens(0), use.heavy_tokens(100), use.heavy_tokens(490)) == (500, 400, LEAST)
    for _ in range(20):
        use.note_light_prompt(90)
    assert use.heavy_tokens(0) == 90


def test_what_is_remembered_is_bounded(clock: list[float]) -> None:
    use = RecentUse(LEAST, lambda: clock[0])
    for number in range(10 * MAX_TENANTS):
        use.charge(f"t{number}", 1)
        use.forget()
    assert len(use._window) + len(use._before) <= 2 * (MAX_TENANTS + 1)
    assert recent_use.LEAST_STEP_TOKENS["cuda"] > LEAST
