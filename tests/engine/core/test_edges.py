"""Requests at the edges: preempted in the middle of their prompt, as long as the model, as big as the cache.

Compared with the same request run alone in an engine with room for everything.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model
from vllm_engine.config import EngineArgs
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.core.kv_cache.layout import blocks_per_request
from vllm_engine.execution import model_runner
from vllm_engine.messages import EngineRequest, PositionLogprobs, RequestUpdate
from vllm_engine.params import SamplingParams

MAX_MODEL_LEN = 64
BLOCK_SIZE = 4
MakeCore = Callable[..., EngineCore]


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make_tiny_model(request.param, path)
    return path


@pytest.fixture
def make_core(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCore:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")

    def make(**options: Any) -> EngineCore:
        settings = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE}
        if "num_gpu_blocks_override" not in options:
            settings["kv_cache_memory_bytes"] = 2**24
        return EngineCore(EngineArgs(str(model_path), **(settings | options)).create_config(), model_path)

    return make


def request(name: str, length: int, max_tokens: int, *, stop: list[int] | None = None, **params: Any) -> EngineRequest:
    prompt = [(7 * i + 13 * len(name)) % VOCAB_SIZE for i in range(length)]
    sampling = SamplingParams(**({"temperature": 0.9, "max_tokens": None} | params))
    return EngineRequest(name, prompt, sampling, max_tokens, 11, stop or [], [], [])


def run(core: EngineCore, *requests: EngineRequest) -> dict[str, list[RequestUpdate]]:
    core.add(list(requests))
    updates: dict[str, list[RequestUpdate]] = {one.request_id: [] for one in requests}
    for _ in range(5000):
        if not core.has_unfinished():
            return updates
        for update in core.step().updates:
            updates[update.request_id].append(update)
    raise AssertionError("requests do not come to an end")


def tokens(updates: list[RequestUpdate]) -> list[int]:
    return [token for update in updates for token in update.new_token_ids]


def logprobs(updates: list[RequestUpdate]) -> list[PositionLogprobs]:
    return [position for update in updates for position in update.logprobs or ()]


def prompt_logprobs(updates: list[RequestUpdate]) -> list[PositionLogprobs]:
    (found,) = [update.prompt_logprobs for update in updates if update.prompt_logprobs is not None]
    return found


def assert_same_positions(got: list[PositionLogprobs], wanted: list[PositionLogprobs]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.token_ids[0] == other.token_ids[0]
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def smallest_cache(make_core: MakeCore, **options: Any) -> int:
    """Blocks that one request of the model's length needs, and the null block."""
    limits = make_core(**options).limits
    return 1 + blocks_per_request(limits.layout.groups, BLOCK_SIZE, MAX_MODEL_LEN, limits.max_num_batched_tokens)


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_prompt_logprobs_are_the_same_after_a_preemption_within_the_prompt(
    make_core: MakeCore, prefix_caching: bool, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request("long", 50, 6, prompt_logprobs=3, logprobs=2)
    solo = run(make_core(), wanted)["long"]
    options = {
        "max_num_batched_tokens": 12,
        "long_prefill_token_threshold": 5,
        "max_num_partial_prefills": 2,
        "max_num_seqs": 6,
        "scheduler_reserve_full_isl": False,
    }
    core = make_core(
        **options,
        num_gpu_blocks_override=smallest_cache(make_core, **options),
        enable_prefix_caching=prefix_caching,
        scheduling_policy=policy,
    )
    preempted_at: list[int] = []
    send_back = core.scheduler._send_back

    def spy(one: Any) -> None:
        if one.request_id == "long":
            preempted_at.append(one.num_computed_tokens)
        send_back(one)

    monkeypatch.setattr(core.scheduler, "_send_back", spy)
    others = [request(name, 9, 30) for name in ("a", "bb", "ccc")]
    core.add(others)
    for _ in range(5):
        core.step()
    core.add([wanted])
    updates: dict[str, list[RequestUpdate]] = {one.request_id: [] for one in [wanted, *others]}
    while core.has_unfinished():
        for update in core.step().updates:
            updates[update.request_id].append(update)
    assert any(0 < position < 49 for position in preempted_at), "the test must preempt within the prompt"
    assert updates["long"][-1].num_preemptions == len(preempted_at)
    assert tokens(updates["long"]) == tokens(solo)
    assert_same_positions(prompt_logprobs(updates["long"]), prompt_logprobs(solo))
    assert_same_positions(logprobs(updates["long"]), logprobs(solo))
    assert len(prompt_logprobs(solo)) == 49


def test_a_preemption_after_the_prompt_brings_prompt_logprobs_only_once(make_core: MakeCore) -> None:
    names = ["a", "bb", "ccc", "dddd"]
    work = [request(name, 20, 40, prompt_logprobs=1, logprobs=1) for name in names]
    solo = {one.request_id: run(make_core(), one)[one.request_id] for one in work}
    options = {"max_num_batched_tokens": 30, "max_num_seqs": 4}
    core = make_core(**options, num_gpu_blocks_override=smallest_cache(make_core, **options) + 6)
    updates = run(core, *work)
    assert core.scheduler.stats().num_preemptions > 0
    for name in names:
        assert tokens(updates[name]) == tokens(solo[name])
        assert_same_positions(prompt_logprobs(updates[name]), prompt_logprobs(solo[name]))
        assert_same_positions(logprobs(updates[name]), logprobs(solo[name]))


def test_prompts_up_to_the_length_of_the_model_bring_what_fits_after_them(make_core: MakeCore) -> None:
    room = make_core()
    options = {"max_num_batched_tokens": 16, "max_num_seqs": 4}
    tight = make_core(**options, num_gpu_blocks_override=smallest_cache(make_core, **options))
    for length, expected in ((MAX_MODEL_LEN - 2, 2), (MAX_MODEL_LEN - 1, 1), (MAX_MODEL_LEN, 1)):
        wanted = request("edge", length, 100, prompt_logprobs=0)
        updates = run(room, wanted)["edge"]
        assert len(tokens(updates)) == expected
        assert updates[-1].finish_reason == "length"
        assert len(prompt_logprobs(updates)) == length - 1
        # Alone it fills the whole cache; two of them take turns.
        again = run(tight, wanted, request("edg2", length, 100))
        assert tokens(again["edge"]) == tokens(updates)
        assert len(tokens(again["edg2"])) == expected
        assert tight.scheduler.stats().kv_cache_usage == 0


def test_prompt_logprobs_do_not_depend_on_how_many_rows_of_logits_are_held_at_once(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request("long", 50, 1, prompt_logprobs=2)
    at_once = prompt_logprobs(run(make_core(), wanted)["long"])
    monkeypatch.setattr(model_runner, "PROMPT_LOGPROB_ROWS", 7)
    assert_same_positions(prompt_logprobs(run(make_core(), wanted)["long"]), at_once)


def test_a_prompt_of_one_token_has_no_prompt_logprobs_and_one_token_may_be_all(make_core: MakeCore) -> None:
    (update,) = run(make_core(), request("one", 1, 1, prompt_logprobs=3, logprobs=0))["one"]
    assert (update.prompt_logprobs, len(update.new_token_ids), update.finish_reason) == ([], 1, "length")
    assert update.logprobs is not None and len(update.logprobs[0].token_ids) == 1


def test_logprobs_of_the_whole_vocabulary_are_a_distribution(make_core: MakeCore) -> None:
    for update in run(make_core(), request("all", 3, 3, logprobs=-1, prompt_logprobs=-1))["all"]:
        for position in [*(update.logprobs or ()), *(update.prompt_logprobs or ())]:
            assert sorted(position.token_ids[1:]) == list(range(VOCAB_SIZE))
            assert sum(map(math.exp, position.logprobs[1:])) == pytest.approx(1.0, abs=1e-4)
            assert position.rank == 1 + sum(value > position.logprobs[0] for value in position.logprobs[1:])


def test_stop_tokens_wait_for_min_tokens_across_a_preemption(make_core: MakeCore) -> None:
    """Three quarters of the vocabulary stop: without ``min_tokens`` the output would end at once."""
    stops = [token for token in range(VOCAB_SIZE) if token % 4]
    names = ["a", "bb", "ccc", "dddd"]
    work = [request(name, 20, 40, stop=stops, min_tokens=30) for name in names]
    solo = {one.request_id: run(make_core(), one)[one.request_id] for one in work}
    options = {"max_num_batched_tokens": 30, "max_num_seqs": 4}
    core = make_core(**options, num_gpu_blocks_override=smallest_cache(make_core, **options) + 6)
    updates = run(core, *work)
    assert core.scheduler.stats().num_preemptions > 0
    for name in names:
        got = tokens(updates[name])
        assert got == tokens(solo[name])
        assert len(got) > 30 and not set(got[:30]) & set(stops)
        assert updates[name][-1].stop_reason == got[-1]


def test_urgent_requests_overtake_but_a_patient_one_comes_to_its_end(make_core: MakeCore) -> None:
    options = {"max_num_batched_tokens": 16, "max_num_seqs": 2, "scheduling_policy": "priority"}
    core = make_core(**options, num_gpu_blocks_override=smallest_cache(make_core, **options) + 3)

    patient = replace(request("patient", 30, 20), priority=5)
    expected = tokens(run(make_core(), patient)["patient"])
    core.add([patient])
    core.step()
    updates: list[RequestUpdate] = []
    finished: list[str] = []
    for index in range(400):
        if index < 40 and index % 4 == 0:
            core.add([replace(request(f"urgent{index}", 20, 8), priority=-index)])
        if not core.has_unfinished():
            break
        for update in core.step().updates:
            if update.request_id == "patient":
                updates.append(update)
            if update.finish_reason is not None:
                finished.append(update.request_id)
    assert len(finished) == 11
    assert tokens(updates) == expected
