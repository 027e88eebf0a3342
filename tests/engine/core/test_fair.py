"""Fair shares between tenants: exact counts of steps and tokens on the simulated model."""

import random

import pytest

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.policies.tenants import MAX_DEBTORS, Tenants

from .harness import Harness, engine_request, expected_output

FAIR = SchedulerConfig(scheduling_policy="fair")


def prompt_of(name: str, length: int) -> list[int]:
    rng = random.Random(name)
    return [rng.randrange(50) for _ in range(length)]


class Load:
    """Requests of tenants, and what they were served step by step."""

    def __init__(self, policy: str, **limits: int) -> None:
        self.harness = Harness(config=SchedulerConfig(scheduling_policy=policy), **limits)  # type: ignore[arg-type]
        self.sent: dict[str, tuple[str, int, int]] = {}

    def send(self, tenant: str, length: int, max_tokens: int) -> str:
        name = f"{tenant}{len(self.sent)}"
        self.sent[name] = (tenant, length, max_tokens)
        self.harness.scheduler.add(engine_request(name, prompt_of(name, length), max_tokens, tenant=tenant))
        return name

    def steps_to_first_token(self, name: str) -> int:
        for step in range(1, 2000):
            self.harness.step()
            if name in self.harness.updates:
                return step
        raise AssertionError("it waits for ever")

    def tokens_of(self, tenant: str) -> int:
        """Tokens generated for a tenant so far."""
        return sum(len(self.harness.output(name)) for name in self.harness.updates if self.sent[name][0] == tenant)

    def finish(self) -> None:
        self.harness.run()
        for name, (_, length, max_tokens) in self.sent.items():
            assert self.harness.output(name) == expected_output(prompt_of(name, length), max_tokens)


def first_tokens_of_a_light_tenant(policy: str, flood: int) -> list[int]:
    """Steps to the first token of each of 30 requests, one after the other."""
    load = Load(policy, max_num_seqs=4, budget=64, num_blocks=400)
    for _ in range(flood):
        load.send("heavy", 40, 60)
    load.harness.step() if flood else None
    waits = []
    for _ in range(30):
        waits.append(load.steps_to_first_token(load.send("light", 20, 4)))
        for _ in range(12):  # less than half of what the engine can do, which is its share
            load.harness.step()
    load.finish()
    return waits


def test_a_light_tenant_waits_at_most_twice_as_long_as_alone_while_another_floods() -> None:
    alone = first_tokens_of_a_light_tenant("fair", 0)
    assert set(alone) == {1}
    assert max(first_tokens_of_a_light_tenant("fair", 50)) <= 2
    assert max(first_tokens_of_a_light_tenant("fcfs", 50)) > 100


def test_a_long_prompt_of_another_tenant_does_not_hold_up_a_short_one() -> None:
    for policy, most in (("fair", 2), ("fcfs", 8)):
        load = Load(policy, budget=16, max_model_len=256, num_blocks=400)
        for _ in range(3):
            load.send("heavy", 128, 4)
        load.harness.step()
        waited = load.steps_to_first_token(load.send("light", 12, 4))
        assert (waited <= most) if policy == "fair" else (waited >= most)
        load.finish()


@pytest.mark.parametrize(("num_blocks", "max_num_seqs"), [(400, 4), (30, 16)], ids=["places", "blocks"])
def test_two_tenants_share_evenly_though_one_sends_twenty_times_as_much(num_blocks: int, max_num_seqs: int) -> None:
    load = Load("fair", max_num_seqs=max_num_seqs, budget=64, num_blocks=num_blocks, max_model_len=64)
    for _ in range(200):
        load.send("heavy", 20, 20)
    for _ in range(10):
        load.send("light", 20, 20)
    while load.tokens_of("light") < 150:
        load.harness.step()
    light, heavy = load.tokens_of("light"), load.tokens_of("heavy")
    # Until both have a request in each place, one of them is ahead by what a few requests generate.
    assert abs(light - heavy) <= 3 * 20
    load.finish()


def test_what_a_tenant_leaves_others_use() -> None:
    fair, alone = Load("fair", max_num_seqs=4, budget=64), Load("fcfs", max_num_seqs=4, budget=64)
    for load in (fair, alone):
        for _ in range(30):
            load.send("heavy", 10, 10)
        load.finish()
    assert len(fair.harness.batches) == len(alone.harness.batches)


def test_nobody_saves_up_a_claim_while_away_or_sheds_a_debt_by_leaving() -> None:
    tenants = Tenants(4, 0)
    tenants.add_request("a")
    tenants.charge("a", 100)
    tenants.add_request("b")
    assert tenants.served("b") == 100  # it begins where the least served one is
    tenants.charge("b", 50)
    tenants.remove_request("b")
    tenants.add_request("b")
    assert tenants.served("b") == 150
    tenants.remove_request("b")
    tenants.charge("a", 200)
    tenants.add_request("b")
    assert tenants.served("b") == 300
    tenants.remove_request("b")
    assert tenants.num_known == 1  # it owes nothing that anyone has to remember
    tenants.remove_request("a")
    assert tenants.num_known == 0


def test_tenants_without_requests_are_forgotten() -> None:
    tenants = Tenants(4, 0)
    tenants.add_request("stays")
    for index in range(5000):
        tenants.add_request(f"t{index}")
        tenants.charge(f"t{index}", 1 + index)
        tenants.remove_request(f"t{index}")
        assert tenants.num_known <= MAX_DEBTORS + 1
    tenants.remove_request("stays")
    assert tenants.num_known == tenants.num_active == 0


def test_the_scheduler_forgets_tenants_in_every_kind_of_end() -> None:
    load = Load("fair", max_num_seqs=2, budget=64)
    names = [load.send(f"t{index}", 10, 10) for index in range(6)]
    load.harness.step()
    load.harness.scheduler.abort(names[:1] + names[-1:])
    load.harness.scheduler.fail_batch(load.harness.scheduler.schedule(), "as asked")
    while load.harness.scheduler.has_unfinished():
        load.harness.step()
    tenants = load.harness.scheduler._policy.tenants
    assert tenants.num_known == 0
