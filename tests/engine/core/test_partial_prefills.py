"""Who may be part-way through a prompt, who passes whom, and who waits until there is room for all of a prompt."""

import random

import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.kv_cache.layout import blocks_per_request
from vllm_engine.execution.batch import ScheduledBatch

from .harness import FULL, HYBRID, SLIDING, Harness, engine_request, expected_output


class Books:
    """What one can see of prefills from outside: a request is part-way from its first step until it gets a token."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.prefilling: dict[str, bool] = {}
        self.known: dict[str, int] = {}

    def step(self) -> ScheduledBatch:
        """One step; the batch."""
        harness = self.harness
        harness.step()
        batch, result = harness.batches[-1], harness.results[-1]
        for request_id in batch.removed:
            self.prefilling.pop(request_id, None)
        for new in batch.new_requests:
            self.known[new.request.request_id] = len(new.token_ids)
        decoding = [request_id for request_id, prefilling in self.prefilling.items() if not prefilling]
        missing = [name for name in decoding if batch.num_scheduled_tokens.get(name) != 1]
        assert not missing, "whoever generates has a token in each step"
        for request_id in batch.num_scheduled_tokens:
            self.prefilling[request_id] = request_id not in result.sampled
        for request_id in [name for name in self.prefilling if name not in harness.scheduler]:
            del self.prefilling[request_id]
        return batch

    def partial(self, *, longer_than: int = 0) -> list[str]:
        """Requests that are part-way, and are to compute more tokens than so many."""
        return [name for name, prefilling in self.prefilling.items() if prefilling and self.known[name] > longer_than]


@pytest.mark.parametrize("seed", range(60))
def test_any_load_under_any_limits_ends_within_them_with_the_solo_outputs(seed: int) -> None:
    rng = random.Random(seed)
    groups = rng.choice([FULL, SLIDING, HYBRID])
    max_model_len, block_size = 64, rng.choice([1, 3, 4])
    budget = rng.randrange(2, 40)
    max_num_seqs = rng.randrange(1, min(budget, 8) + 1)
    max_partial = rng.randrange(1, 5)
    config = SchedulerConfig(
        scheduling_policy=rng.choice(["fcfs", "priority"]),
        max_num_partial_prefills=max_partial,
        max_long_partial_prefills=rng.randrange(1, max_partial + 1),
        long_prefill_token_threshold=rng.choice([0, 1, 7, 30]),
        scheduler_reserve_full_isl=rng.random() < 0.5,
    )
    smallest = blocks_per_request(groups, block_size, max_model_len, budget) + 1
    harness = Harness(
        groups,
        num_blocks=smallest + rng.choice([0, 0, 5, 50]),
        block_size=block_size,
        budget=budget,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        prefix_caching=rng.random() < 0.5,
        config=config,
    )
    books = Books(harness)
    cap = config.long_prefill_token_threshold or budget
    long_from = config.long_prefill_token_threshold or int(0.04 * max_model_len)
    stem = [rng.randrange(50) for _ in range(50)]
    wanted: dict[str, tuple[list[int], int]] = {}

    def check_step() -> None:
        batch = books.step()
        assert max(batch.num_scheduled_tokens.values(), default=0) <= cap
        assert len(harness.runner.rows) <= max_num_seqs
        assert len(books.partial()) <= max_partial
        if config.max_long_partial_prefills < max_partial:
            assert len(books.partial(longer_than=long_from)) <= config.max_long_partial_prefills

    for index in range(14):
        prompt = stem[: rng.randrange(40)] + [rng.randrange(50) for _ in range(rng.randrange(1, 20))]
        count = rng.randrange(1, 6)
        wanted[f"r{index}"] = prompt, min(count, max_model_len - len(prompt))
        harness.scheduler.add(engine_request(f"r{index}", prompt, wanted[f"r{index}"][1], priority=rng.randrange(3)))
        for _ in range(rng.randrange(4)):
            if harness.scheduler.has_unfinished():
                check_step()
    for _ in range(3000):
        if not harness.scheduler.has_unfinished():
            break
        check_step()
    for name, (prompt, count) in wanted.items():
        assert harness.output(name) == expected_output(prompt, count)
    assert harness.scheduler.kv.pool.num_used == 0


def first_steps(harness: Harness) -> dict[str, int]:
    """The step in which each request was first scheduled."""
    first: dict[str, int] = {}
    for index, batch in enumerate(harness.batches):
        for name in batch.num_scheduled_tokens:
            first.setdefault(name, index)
    return first


def first_token_steps(harness: Harness) -> dict[str, int]:
    """The step in which each request got its first token."""
    first: dict[str, int] = {}
    for index, result in enumerate(harness.results):
        for name in result.sampled:
            first.setdefault(name, index)
    return first


def test_by_default_prompts_come_one_after_the_other_and_every_step_is_full() -> None:
    harness = Harness(budget=32, num_blocks=1000, max_model_len=512)
    for name in ("a", "b", "c"):
        harness.scheduler.add(engine_request(name, [ord(name)] * 80, 1))
    harness.run()
    assert [batch.total_num_tokens for batch in harness.batches] == [32] * 7 + [16]
    assert [list(batch.num_scheduled_tokens) for batch in harness.batches][2:6] == [["a", "b"], ["b"], ["b"], ["c"]]


@pytest.mark.parametrize("threshold", [0, 25])
def test_a_short_prompt_passes_the_long_ones_where_fewer_long_ones_may_be_part_way(threshold: int) -> None:
    """Long is what has more tokens than the threshold, or than 4 % of the model's length."""
    passed = {}
    for max_long in (1, 2):
        harness = Harness(
            budget=64,
            num_blocks=1000,
            max_model_len=500,
            config=SchedulerConfig(
                max_num_partial_prefills=2,
                max_long_partial_prefills=max_long,
                long_prefill_token_threshold=threshold,
            ),
        )
        for name in ("long", "later"):
            harness.scheduler.add(engine_request(name, [ord(name[-1])] * 300, 1))
        harness.scheduler.add(engine_request("short", [1] * (20 if max_long == 1 else 21), 1))
        harness.run()
        first, answered = first_steps(harness), first_token_steps(harness)
        passed[max_long] = first["short"] < first["later"] and answered["short"] < answered["long"]
        if max_long == 1:
            assert first["short"] == 0 and first["later"] >= answered["long"]
    assert passed == {1: True, 2: False}


def test_a_prompt_of_just_four_percent_of_the_model_is_short() -> None:
    first = {}
    for length in (20, 21):
        harness = Harness(
            budget=64, num_blocks=1000, max_model_len=500, config=SchedulerConfig(max_num_partial_prefills=2)
        )
        # The places of the first step go to a long prompt; a second long one must not be left part-way.
        for name, size in (("long", 300), ("later", 300), ("prompt", length)):
            harness.scheduler.add(engine_request(name, [ord(name[-1])] * size, 1))
        harness.run()
        first[length] = first_steps(harness)["prompt"]
    assert first[20] == 0
    assert first[21] > 0


def test_a_long_prompt_that_is_alone_part_way_gets_all_tokens_that_nobody_else_uses() -> None:
    harness = Harness(budget=32, num_blocks=1000, max_model_len=500, config=SchedulerConfig(max_num_partial_prefills=4))
    harness.scheduler.add(engine_request("decodes", [1], 100))
    harness.step()
    harness.scheduler.add(engine_request("long", [2] * 150, 1))
    while "long" in harness.scheduler:
        harness.step()
    assert [batch.num_scheduled_tokens["long"] for batch in harness.batches[1:]] == [31] * 4 + [26]


def test_with_a_threshold_and_one_place_only_what_a_step_completes_runs_beside_a_long_prompt() -> None:
    harness = Harness(budget=32, num_blocks=1000, config=SchedulerConfig(long_prefill_token_threshold=8))
    harness.scheduler.add(engine_request("long", [1] * 32, 1))
    harness.scheduler.add(engine_request("fits", [2] * 8, 1))
    harness.scheduler.add(engine_request("waits", [3] * 9, 1))
    harness.run()
    assert [dict(batch.num_scheduled_tokens) for batch in harness.batches[:4]] == [
        {"long": 8, "fits": 8},
        {"long": 8},
        {"long": 8},
        {"long": 8, "waits": 8},
    ]


def test_an_endless_stream_of_short_prompts_starves_no_long_one() -> None:
    harness = Harness(
        budget=16,
        num_blocks=1000,
        max_model_len=128,
        max_num_seqs=8,
        config=SchedulerConfig(max_num_partial_prefills=3, long_prefill_token_threshold=10),
    )
    for name in ("long", "later"):
        harness.scheduler.add(engine_request(name, [ord(name[-1])] * 100, 2))
    for index in range(400):
        if "later" not in harness.scheduler:
            break
        for part in range(2):
            harness.scheduler.add(engine_request(f"s{index}-{part}", [index % 50, part] * 4, 2))
        harness.step()
    assert {"long", "later"} <= first_token_steps(harness).keys()


def test_who_generates_goes_on_while_a_preempted_request_is_computed_again() -> None:
    """The older request comes first in the order, and still leaves a token for each of the others."""
    harness = Harness(
        num_blocks=40,
        budget=8,
        prefix_caching=False,
        config=SchedulerConfig(scheduling_policy="priority", scheduler_reserve_full_isl=False),
    )
    for index in range(3):
        harness.scheduler.add(engine_request(f"low{index}", [index] * 3, 25, priority=1))
    for _ in range(3):
        harness.step()
    harness.scheduler.add(engine_request("urgent", [9] * 30, 2))
    books = Books(harness)
    while harness.scheduler.has_unfinished():
        books.step()
    assert harness.batches[3].num_scheduled_tokens == {"low0": 1, "low1": 1, "low2": 1, "urgent": 5}
    assert list(harness.batches[4].num_scheduled_tokens) == ["urgent", "low0", "low1", "low2"]
    assert harness.output("low2") == expected_output([2] * 3, 25)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_prompt_starts_only_when_all_of_it_has_room_or_else_with_its_first_chunk(reserve: bool) -> None:
    harness = Harness(
        num_blocks=13, budget=8, prefix_caching=False, config=SchedulerConfig(scheduler_reserve_full_isl=reserve)
    )
    harness.scheduler.add(engine_request("runs", [1] * 16, 8))  # holds 4 to 6 of 12 blocks
    harness.scheduler.add(engine_request("waits", [2] * 40, 1))  # needs 10
    harness.run()
    begins = first_steps(harness)["waits"]
    ends = max(index for index, batch in enumerate(harness.batches) if "runs" in batch.num_scheduled_tokens)
    assert (begins > ends) == reserve
    assert (harness.scheduler.stats().num_preemptions == 0) == reserve
    assert harness.output("waits") == expected_output([2] * 40, 1)


def test_room_that_a_prompt_will_still_need_is_given_to_no_other() -> None:
    """Both prompts would fit what is free now, but not together."""
    config = SchedulerConfig(max_num_partial_prefills=2, max_long_partial_prefills=2)
    harness = Harness(num_blocks=13, budget=8, prefix_caching=False, config=config)
    for name in ("a", "b"):
        harness.scheduler.add(engine_request(name, [ord(name)] * 28, 1))
    harness.run()
    assert first_steps(harness)["b"] > first_steps(harness)["a"]
    assert harness.scheduler.stats().num_preemptions == 0


def test_blocks_that_others_hold_are_not_counted_against_a_prompt() -> None:
    harness = Harness(num_blocks=13, budget=64)
    prompt = [*range(32)]
    harness.scheduler.add(engine_request("first", prompt, 10))
    harness.step()
    harness.scheduler.add(engine_request("second", [*prompt, 40, 41], 1))
    harness.step()
    assert "second" in harness.batches[-1].num_scheduled_tokens


@pytest.mark.parametrize("groups", [FULL, SLIDING, HYBRID], ids=["full", "sliding", "hybrid"])
def test_a_prompt_as_big_as_the_cache_runs_when_it_is_alone(groups: tuple[object, ...]) -> None:
    num_blocks = blocks_per_request(groups, 4, 64, 8) + 1  # type: ignore[arg-type]
    harness = Harness(groups, num_blocks=num_blocks, budget=8, max_model_len=64)  # type: ignore[arg-type]
    for name in ("before", "big", "again"):
        harness.scheduler.add(engine_request(name, [7] * (20 if name == "before" else 63), 1))
    harness.run()
    assert harness.output("again") == expected_output([7] * 63, 1)
