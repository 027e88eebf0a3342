"""The scheduler and the KV accounting, run against a cache that notices every wrong block."""

import random

import msgspec
import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.kv_layout import KVGroup
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams

from .harness import FULL, HYBRID, SLIDING, Harness, engine_request, expected_output


@pytest.mark.parametrize("groups", [FULL, SLIDING, HYBRID], ids=["full", "sliding", "hybrid"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
@pytest.mark.parametrize("ahead", [0, 1], ids=["in step", "ahead"])
def test_every_output_is_the_solo_output_under_churn(
    groups: tuple[KVGroup, ...], prefix_caching: bool, policy: str, ahead: int
) -> None:
    """Random arrivals, shared prefixes, aborts, chunks and preemptions: no request ever sees another's tokens."""
    rng = random.Random(f"{len(groups)}{prefix_caching}{policy}")
    stems = [[rng.randrange(50) for _ in range(40)] for _ in range(3)]
    harness = Harness(
        groups,
        num_blocks=11 if groups is SLIDING else 60,
        budget=23,
        max_num_seqs=7,
        prefix_caching=prefix_caching,
        config=SchedulerConfig(
            scheduling_policy=policy,
            long_prefill_token_threshold=9,
            max_num_partial_prefills=4,
            max_long_partial_prefills=2,
            scheduler_reserve_full_isl=False,
        ),
        ahead=ahead,
    )
    wanted: dict[str, tuple[list[int], int]] = {}
    aborted: set[str] = set()
    for index in range(150):
        stem = rng.choice(stems)
        prompt = stem[: rng.randrange(1, 40)] + [rng.randrange(50) for _ in range(rng.randrange(12))]
        count = rng.randrange(1, 20)
        name = f"r{index}"
        salt = rng.choice([None, "a"])
        tenant = "xyz"[index % 3]
        harness.scheduler.add(engine_request(name, prompt, count, priority=rng.randrange(3), salt=salt, tenant=tenant))
        wanted[name] = (prompt, count)
        for _ in range(rng.randrange(6)):
            if harness.scheduler.has_unfinished():
                harness.step()
        if rng.random() < 0.15:
            victim = rng.choice(list(wanted))
            if victim in harness.scheduler:
                harness.scheduler.abort([victim])
                aborted.add(victim)
    harness.run()
    for name, (prompt, count) in wanted.items():
        if name not in aborted:
            assert harness.output(name) == expected_output(prompt, count)
    stats = harness.scheduler.stats()
    assert stats.num_preemptions > 0, "the test must exercise preemption"
    assert (stats.prefix_cache_hits > 0) == prefix_caching
    assert harness.scheduler.kv.pool.num_used == 0
    assert harness.runner.rows.keys() <= set(harness.scheduler.schedule().removed)


def test_a_step_never_exceeds_the_token_budget_and_splits_a_long_prompt() -> None:
    harness = Harness(budget=16)
    harness.scheduler.add(engine_request("long", list(range(40)), 2))
    harness.run()
    assert [batch.num_scheduled_tokens["long"] for batch in harness.batches] == [16, 16, 8, 1]


def test_running_requests_go_on_while_a_long_prompt_is_prefilled() -> None:
    harness = Harness(budget=16)
    harness.scheduler.add(engine_request("short", [1, 2], 10))
    harness.step()
    harness.scheduler.add(engine_request("long", list(range(40)), 1))
    for _ in range(3):
        harness.step()
        assert harness.batches[-1].num_scheduled_tokens["short"] == 1
        assert "long" in harness.batches[-1].num_scheduled_tokens


def test_without_chunked_prefill_a_prompt_is_computed_in_one_step() -> None:
    harness = Harness(budget=128, config=SchedulerConfig(enable_chunked_prefill=False))
    for index in range(4):
        harness.scheduler.add(engine_request(f"r{index}", [index] * 50, 2))
    harness.run()
    prefills = [n for batch in harness.batches for n in batch.num_scheduled_tokens.values() if n > 1]
    assert prefills == [50, 50, 50, 50]


def test_an_equal_prompt_is_served_from_the_cache_but_for_its_last_block() -> None:
    harness = Harness()
    prompt = list(range(17))
    harness.scheduler.add(engine_request("first", prompt, 1))
    harness.run()
    harness.scheduler.add(engine_request("second", prompt, 1))
    harness.run()
    assert harness.updates["second"][0].num_cached_tokens == 16
    assert harness.updates["first"][0].num_cached_tokens == 0


def test_a_prompt_of_whole_blocks_leaves_one_block_to_compute() -> None:
    """The last token must be computed, or there would be no logits to sample from."""
    harness = Harness()
    for name in ("first", "second"):
        harness.scheduler.add(engine_request(name, list(range(16)), 1))
        harness.run()
    assert harness.updates["second"][0].num_cached_tokens == 12


def test_requests_that_arrive_together_share_their_prefix() -> None:
    harness = Harness(budget=64)
    for index in range(4):
        harness.scheduler.add(engine_request(f"r{index}", list(range(33)), 1))
    harness.run()
    assert harness.runner.computed_tokens == 33 + 3 * 1


def test_a_different_salt_hits_nothing_and_the_same_salt_hits() -> None:
    harness = Harness()
    for name, salt in (("a1", "a"), ("b", "b"), ("none", None), ("a2", "a")):
        harness.scheduler.add(engine_request(name, list(range(17)), 1, salt=salt))
        harness.run()
    cached = {name: updates[0].num_cached_tokens for name, updates in harness.updates.items()}
    assert cached == {"a1": 0, "b": 0, "none": 0, "a2": 16}


def test_a_prefix_hit_with_a_sliding_window_needs_only_the_visible_blocks() -> None:
    """The first blocks of the sequence slid out of the window and were evicted, and still the prompt hits."""
    harness = Harness(SLIDING, num_blocks=12, budget=8)
    prompt = list(range(33))
    harness.scheduler.add(engine_request("first", prompt, 1))
    harness.run()
    harness.scheduler.add(engine_request("other", [7] * 20, 1))
    harness.run()
    harness.scheduler.add(engine_request("second", prompt, 1))
    harness.run()
    assert harness.updates["second"][0].num_cached_tokens == 32


def test_blocks_outside_the_window_are_given_back() -> None:
    harness = Harness(SLIDING, num_blocks=100, budget=8)
    harness.scheduler.add(engine_request("long", list(range(80)), 20))
    most = 0
    while harness.scheduler.has_unfinished():
        harness.step()
        most = max(most, harness.scheduler.kv.pool.num_used)
    assert most <= 4, "a window of 5 and a step of 8 tokens touch at most 4 blocks of 4"


def test_the_youngest_request_is_preempted_and_finishes_all_the_same() -> None:
    harness = Harness(num_blocks=11, prefix_caching=False)
    for name in ("old", "young"):
        harness.scheduler.add(engine_request(name, [ord(name[0])] * 12, 20))
    harness.run()
    assert harness.updates["old"][-1].num_preemptions == 0
    assert harness.updates["young"][-1].num_preemptions > 0
    assert harness.output("young") == expected_output([ord("y")] * 12, 20)


def test_the_priority_policy_runs_urgent_requests_first_and_preempts_the_others() -> None:
    harness = Harness(num_blocks=11, prefix_caching=False, config=SchedulerConfig(scheduling_policy="priority"))
    harness.scheduler.add(engine_request("later", [1] * 12, 20, priority=5))
    harness.scheduler.add(engine_request("urgent", [2] * 12, 20, priority=-1))
    harness.run()
    assert list(harness.batches[0].num_scheduled_tokens) == ["urgent", "later"]
    assert harness.updates["urgent"][-1].num_preemptions == 0
    assert harness.updates["later"][-1].num_preemptions > 0


def test_a_preempted_request_comes_before_those_that_arrived_later() -> None:
    harness = Harness(num_blocks=11, prefix_caching=False, max_num_seqs=2)
    for name in ("a", "b", "c"):
        harness.scheduler.add(engine_request(name, [ord(name)] * 12, 20))
    harness.run()
    order = [update for batch in harness.batches for update in (n.request.request_id for n in batch.new_requests)]
    assert order.index("c") > max(i for i, name in enumerate(order) if name == "b")


def test_an_abort_gives_everything_back_whatever_the_request_is_doing() -> None:
    harness = Harness(budget=8, max_num_seqs=2)
    for index in range(4):
        harness.scheduler.add(engine_request(f"r{index}", [index] * 12, 5))
    harness.step()  # r0 in prefill, the others wait
    harness.scheduler.abort(["r0", "r3", "unknown"])
    harness.scheduler.abort(["r0"])
    harness.run()
    assert set(harness.updates) == {"r1", "r2"}
    assert harness.scheduler.kv.pool.num_used == 0


def test_the_tail_of_a_cached_sequence_is_evicted_before_its_head() -> None:
    harness = Harness(num_blocks=11)  # ten to give away
    harness.scheduler.add(engine_request("first", list(range(20)), 1))
    harness.run()
    harness.scheduler.add(engine_request("evicts", list(range(100, 128)), 1))  # five free blocks, and two of the others
    harness.run()
    harness.scheduler.add(engine_request("again", [*range(20), 1], 1))
    harness.run()
    assert harness.updates["again"][0].num_cached_tokens == 12


def test_only_what_is_looked_up_counts_as_looked_up() -> None:
    for caching, expected in ((True, 20), (False, 0)):
        harness = Harness(prefix_caching=caching)
        harness.scheduler.add(engine_request("plain", list(range(20)), 1))
        request = engine_request("logprobs", list(range(20)), 1)
        harness.scheduler.add(msgspec.structs.replace(request, params=SamplingParams(prompt_logprobs=1)))
        harness.run()
        assert harness.scheduler.stats().prefix_cache_queries == expected


def test_nobody_enters_in_the_step_of_a_preemption() -> None:
    harness = Harness(num_blocks=11, budget=8, prefix_caching=False)  # a first chunk would fit the freed blocks
    for name in ("old", "young"):
        harness.scheduler.add(engine_request(name, [ord(name[0])] * 12, 20))
    while not harness.scheduler.stats().num_preemptions:
        harness.step()
    assert harness.batches[-1].removed == ["young"]
    assert harness.batches[-1].new_requests == []


def test_blocks_of_a_preempted_request_go_to_those_who_run_before_anyone_else() -> None:
    """And its share of the cache is what it first found, not what it had put there itself."""
    harness = Harness(num_blocks=11, max_num_seqs=2)
    harness.scheduler.add(engine_request("old", list(range(15)), 12))
    harness.scheduler.add(engine_request("young", list(range(50, 67)), 8))
    harness.scheduler.add(engine_request("waits", [1], 1))
    while not harness.scheduler.stats().num_preemptions:
        harness.step()
    assert harness.batches[-1].removed == ["young"]
    assert harness.batches[-1].new_requests == []
    harness.run()
    reruns = [new for batch in harness.batches for new in batch.new_requests if new.request.request_id == "young"]
    assert len(reruns) == 2 and reruns[1].num_computed_tokens > 0
    assert harness.updates["young"][-1].num_cached_tokens == 0


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_request_id_may_come_again_as_soon_as_its_request_is_gone(policy: str) -> None:
    harness = Harness(max_num_seqs=1, config=SchedulerConfig(scheduling_policy=policy))
    harness.scheduler.add(engine_request("first", [1, 2, 3], 4))
    harness.step()
    harness.scheduler.add(engine_request("again", [4, 5, 6], 4, priority=-1))
    harness.scheduler.abort(["again"])
    harness.scheduler.add(engine_request("between", [7, 8, 9], 4, priority=1))
    harness.scheduler.add(engine_request("again", [4, 5], 4, priority=2))
    harness.run()
    assert list(harness.updates) == ["first", "between", "again"], "a place in the queue is not inherited"
    assert harness.output("again") == expected_output([4, 5], 4)
    harness.scheduler.add(engine_request("running", [1, 2, 3], 4))
    harness.step()
    harness.scheduler.abort(["running"])
    harness.scheduler.add(engine_request("running", [1, 2, 4], 4))
    harness.updates.clear()
    harness.run()
    assert harness.output("running") == expected_output([1, 2, 4], 4)


def test_requests_that_give_up_while_they_wait_leave_nothing_in_the_queue() -> None:
    harness = Harness(max_num_seqs=1)
    harness.scheduler.add(engine_request("runs", [1, 2, 3], 100))
    harness.step()
    harness.scheduler.add(engine_request("waits", [1, 2, 3], 1))
    for index in range(2000):
        harness.scheduler.add(engine_request(f"r{index}", [1, 2, 3], 1))
        harness.scheduler.abort([f"r{index}"])
    assert len(harness.scheduler._policy._waiting._short._heap) < 100


def test_stop_tokens_end_a_request_and_only_a_real_stop_token_is_a_stop_reason() -> None:
    prompt = [3, 4]
    first, second = expected_output(prompt, 2)
    eos = EngineRequest("eos", prompt, SamplingParams(), 9, 0, [second], [second], [])
    stop = EngineRequest("stop", prompt, SamplingParams(stop_token_ids=[first]), 9, 0, [first, second], [second], [])
    both = EngineRequest("both", prompt, SamplingParams(stop_token_ids=[first]), 9, 0, [first], [first], [])
    harness = Harness()
    for request in (eos, stop, both):
        harness.scheduler.add(request)
    harness.run()
    assert (harness.updates["eos"][-1].finish_reason, harness.updates["eos"][-1].stop_reason) == ("stop", None)
    assert (harness.updates["stop"][-1].finish_reason, harness.updates["stop"][-1].stop_reason) == ("stop", first)
    assert harness.output("stop") == [first]
    assert harness.updates["both"][-1].stop_reason == first, "who asks for the end token is told that it came"


def test_a_request_ends_at_max_tokens_or_at_the_length_of_the_model() -> None:
    harness = Harness(max_model_len=20)
    harness.scheduler.add(engine_request("tokens", [1, 2], 5))
    harness.scheduler.add(engine_request("model", [1] * 15, 100))
    harness.run()
    assert len(harness.output("tokens")) == 5
    assert len(harness.output("model")) == 5
    assert {updates[-1].finish_reason for updates in harness.updates.values()} == {"length"}


def test_a_failed_batch_ends_its_requests_and_the_others_are_computed_again() -> None:
    harness = Harness(budget=16, max_num_seqs=2)
    harness.scheduler.add(engine_request("a", list(range(14)), 5))
    harness.step()
    harness.scheduler.add(engine_request("waiting", list(range(14)), 5))
    harness.scheduler.add(engine_request("later", [9] * 30, 5))
    batch = harness.scheduler.schedule()
    failed = {update.request_id for update in harness.scheduler.fail_batch(batch, "boom")}
    assert failed == set(batch.num_scheduled_tokens)
    harness.runner.rows.clear()
    harness.runner.slots.clear()  # nothing in the cache may be trusted after a failed step
    harness.run()
    survivors = {"waiting", "later"} - failed
    assert survivors
    assert "later" in survivors and harness.output("later") == expected_output([9] * 30, 5)


def test_scheduling_does_not_walk_the_waiting_requests() -> None:
    """Ten thousand waiting requests: a step looks at those that it can run and no more."""
    harness = Harness(max_num_seqs=4, num_blocks=50)
    for index in range(10_000):
        harness.scheduler.add(engine_request(f"r{index}", [index % 50] * 9, 4))
    touched = 0
    original = harness.scheduler.kv.cached_prefix

    def counting(request):  # type: ignore[no-untyped-def]
        nonlocal touched
        touched += 1
        return original(request)

    harness.scheduler.kv.cached_prefix = counting  # type: ignore[method-assign]
    for _ in range(10):
        harness.step()
    assert touched <= 10 * 5


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_request_is_preempted_once_for_want_of_one_block(ahead: int, prefix_caching: bool) -> None:
    """What it has fits again at once, and its next token does not: it waits, and keeps the one under way."""
    prompts = {"first": [3, 1, 4, 1], "second": [5, 9, 2, 6]}
    harness = Harness(ahead=ahead, num_blocks=8, prefix_caching=prefix_caching)
    for name, prompt in prompts.items():
        harness.scheduler.add(engine_request(name, prompt, max_tokens=20))
    harness.run()
    assert [harness.updates[name][-1].num_preemptions for name in prompts] == [0, 1]
    for name, prompt in prompts.items():
        assert harness.output(name) == expected_output(prompt, 20)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_request_that_ends_by_its_length_is_not_computed_once_more_ahead(count: int) -> None:
    in_step, ahead = Harness(), Harness(ahead=1)
    for harness in (in_step, ahead):
        harness.scheduler.add(engine_request("r", [1, 2, 3, 4, 5], count))
        harness.run()
        assert harness.output("r") == expected_output([1, 2, 3, 4, 5], count)
    assert ahead.runner.computed_tokens == in_step.runner.computed_tokens


def test_a_request_at_the_length_of_the_model_is_not_computed_once_more_ahead() -> None:
    harness = Harness(ahead=1, max_model_len=8)
    harness.scheduler.add(engine_request("r", [1, 2, 3, 4, 5], 100))
    harness.run()
    assert harness.output("r") == expected_output([1, 2, 3, 4, 5], 3)
    assert harness.runner.computed_tokens == 7


def test_what_was_computed_after_a_stop_token_ahead_is_dropped_and_its_blocks_are_free() -> None:
    prompt = [3, 1, 4, 1, 5]
    outputs = expected_output(prompt, 9)
    stop = next(token for place, token in enumerate(outputs) if place >= 2 and token not in outputs[:place])
    length = outputs.index(stop) + 1
    harness = Harness(ahead=1)
    harness.scheduler.add(msgspec.structs.replace(engine_request("r", prompt, 30), stop_token_ids=[stop]))
    harness.scheduler.add(engine_request("other", [9, 9, 9], 20))
    harness.run()
    assert harness.output("r") == outputs[:length]
    assert [update.finish_reason for update in harness.updates["r"]].count("stop") == 1
    assert harness.output("other") == expected_output([9, 9, 9], 20)
    assert harness.scheduler.kv.pool.num_used == 0


def test_an_id_that_is_used_again_gets_nothing_of_the_aborted_request_under_way() -> None:
    harness = Harness(ahead=1)
    harness.scheduler.add(engine_request("r", [1, 2, 3], 9))
    harness.step()
    harness.scheduler.abort(["r"])
    harness.scheduler.add(engine_request("r", [7, 7], 4))
    harness.run()
    assert harness.output("r") == expected_output([7, 7], 4)


def test_blocks_of_tokens_that_come_late_are_cached_as_in_step() -> None:
    """Every length of an answer, so that its last token falls on each place of a block."""
    for count in range(1, 12):
        hits = []
        for ahead in (0, 1):
            harness = Harness(ahead=ahead)
            harness.scheduler.add(engine_request("first", [1, 2, 3], count))
            harness.run()
            follow_up = [1, 2, 3, *harness.output("first"), 8, 8, 8, 8]
            harness.scheduler.add(engine_request("next", follow_up, 1))
            harness.run()
            hits.append(harness.scheduler.stats().prefix_cache_hits)
            assert harness.output("next") == expected_output(follow_up, 1)
        assert hits[0] == hits[1]
