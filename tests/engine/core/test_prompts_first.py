"""Requests that generate let short steps go by while prompts can start: in virtual time, so every figure is exact."""

import random

import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.kv_cache.layout import blocks_per_request
from vllm_engine.core.policies.prompts_first import CHEAP_STEP_SECONDS, MOST_SECONDS_BACK
from vllm_engine.execution.batch import ScheduledBatch
from vllm_engine.kv_layout import KVGroup

from .harness import FULL, HYBRID, SLIDING, Harness, engine_request, expected_output

STEP_SECONDS, TOKEN_SECONDS = 0.001, 0.0001
"""What a step takes by itself, and for each token: a small model, whose steps are short."""


class VirtualEngine:
    """A scheduler whose steps take virtual time."""

    def __init__(
        self,
        step_seconds: float = STEP_SECONDS,
        groups: tuple[KVGroup, ...] = FULL,
        config: SchedulerConfig | None = None,
        *,
        streams: bool = True,
        **settings: int,
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(0)
        self.step_seconds = step_seconds
        self.harness = Harness(
            groups,
            config=config,
            clock=lambda: self.now,
            **{"num_blocks": 1000, "block_size": 16, "budget": 64, "max_num_seqs": 64, **settings},
        )
        if streams:
            self.harness.scheduler.expect_streams()
        self.prompts: dict[str, list[int]] = {}
        self.wanted: dict[str, int] = {}

    def add(self, name: str, length: int = 16, max_tokens: int = 100) -> None:
        self.prompts[name] = [self.rng.randrange(50) for _ in range(length)]
        self.wanted[name] = max_tokens
        self.harness.scheduler.add(engine_request(name, self.prompts[name], max_tokens))

    def step(self) -> ScheduledBatch:
        """Schedule and compute a step; the time passes between the two."""
        schedule = self.harness.scheduler.schedule

        def timed() -> ScheduledBatch:
            batch = schedule()
            self.now += self.step_seconds + TOKEN_SECONDS * batch.total_num_tokens
            return batch

        self.harness.scheduler.schedule = timed  # type: ignore[method-assign]
        try:
            self.harness.step()
        finally:
            self.harness.scheduler.schedule = schedule  # type: ignore[method-assign]
        return self.harness.batches[-1]

    def generating(self, name: str = "early") -> None:
        """Let a request have its first tokens, so that it is known what a step takes."""
        self.add(name)
        for _ in range(3):
            self.step()


def test_a_request_that_generates_lets_the_steps_of_a_burst_go_by() -> None:
    engine = VirtualEngine()
    engine.generating()
    for index in range(8):
        engine.add(f"burst{index}", 32)
    batches = [engine.step() for _ in range(5)]
    assert ["early" in batch.num_scheduled_tokens for batch in batches] == [False] * 4 + [True]
    assert [batch.total_num_tokens for batch in batches] == [64, 64, 64, 64, 9]


def test_alone_with_prompts_part_way_nobody_stands_back() -> None:
    """It is what waits that counts: a prompt that is being computed already would be no sooner done."""
    engine = VirtualEngine()
    engine.generating()
    engine.add("long", 100)
    assert "early" not in engine.step().num_scheduled_tokens
    assert engine.step().num_scheduled_tokens == {"early": 1, "long": 36}


def test_without_streams_nobody_stands_back() -> None:
    """A run of ``LLM`` can be repeated: its steps do not depend on the time that others took."""
    engine = VirtualEngine(streams=False)
    engine.generating()
    engine.add("next")
    assert "early" in engine.step().num_scheduled_tokens


@pytest.mark.parametrize(("seconds", "stands_back"), [(0.9, True), (1.1, False)])
def test_where_the_shortest_step_is_long_it_rides_along(seconds: float, stands_back: bool) -> None:
    engine = VirtualEngine(seconds * CHEAP_STEP_SECONDS - TOKEN_SECONDS)
    engine.generating()
    engine.add("next")
    assert ("early" not in engine.step().num_scheduled_tokens) is stands_back


def test_steps_that_have_become_long_are_noticed() -> None:
    engine = VirtualEngine()
    engine.generating()
    engine.step_seconds = 4 * CHEAP_STEP_SECONDS
    for _ in range(80):
        engine.step()
    engine.add("next")
    assert "early" in engine.step().num_scheduled_tokens


def test_with_priorities_nobody_stands_back() -> None:
    engine = VirtualEngine(config=SchedulerConfig(scheduling_policy="priority"))
    engine.generating()
    engine.add("next")
    assert "early" in engine.step().num_scheduled_tokens


def test_no_stream_stands_still_for_longer_than_it_may_however_many_prompts_come() -> None:
    """And under such a load, prompts have no more than two thirds of the time for themselves."""
    engine = VirtualEngine(max_num_seqs=1000, num_blocks=10_000, budget=1000)
    engine.generating()
    rng = random.Random(0)
    last, longest, own = engine.now, 0.0, 0.0
    began = engine.now
    for index in range(2000):
        engine.add(f"flood{index}", rng.randrange(1, 65), max_tokens=1)
        engine.add(f"more{index}", rng.randrange(1, 65), max_tokens=1)
        before = engine.now
        batch = engine.step()
        if "early" not in engine.harness.scheduler:
            engine.add("early", max_tokens=100)
        if "early" in batch.num_scheduled_tokens:
            longest, last = max(longest, engine.now - last), engine.now
        else:
            own += engine.now - before
    step = STEP_SECONDS + TOKEN_SECONDS * 128
    assert MOST_SECONDS_BACK < longest <= MOST_SECONDS_BACK + 3 * step
    assert 0.2 < own / (engine.now - began) < 0.4


def test_nobody_has_to_pay_back_what_an_idle_engine_waited() -> None:
    engine = VirtualEngine()
    engine.generating()
    engine.add("next")
    assert "early" not in engine.step().num_scheduled_tokens
    engine.harness.scheduler.abort(["early", "next"])
    engine.now += 600
    engine.generating("again")
    engine.add("later")
    assert "again" not in engine.step().num_scheduled_tokens


@pytest.mark.parametrize("seed", range(60))
def test_any_load_ends_with_the_solo_outputs_and_has_no_empty_step(seed: int) -> None:
    rng = random.Random(seed)
    groups = rng.choice([FULL, SLIDING, HYBRID])
    budget, block_size = rng.randrange(8, 40), rng.choice([1, 3, 4])
    max_partial = rng.randrange(1, 4)
    engine = VirtualEngine(
        rng.choice([0.0001, 0.001, 0.0028]),
        groups,
        SchedulerConfig(
            max_num_partial_prefills=max_partial,
            max_long_partial_prefills=rng.randrange(1, max_partial + 1),
            long_prefill_token_threshold=rng.choice([0, 7, 30]),
            scheduler_reserve_full_isl=rng.random() < 0.5,
        ),
        num_blocks=blocks_per_request(groups, block_size, 40, budget) + rng.choice([1, 5, 50]),
        block_size=block_size,
        budget=budget,
        max_num_seqs=rng.randrange(1, 8),
        max_model_len=40,
    )
    for index in range(20):
        engine.add(f"{chr(97 + index)}{index}", rng.randrange(1, 30), rng.randrange(1, 10))
        for _ in range(rng.randrange(4)):
            if engine.harness.scheduler.has_unfinished():
                batch = engine.step()
                assert batch.num_scheduled_tokens or batch.removed, "only a preemption leaves a step empty"
    engine.harness.run()
    for name, prompt in engine.prompts.items():
        assert engine.harness.output(name) == expected_output(prompt, min(engine.wanted[name], 40 - len(prompt)))
    assert engine.harness.scheduler.kv.pool.num_used == 0
