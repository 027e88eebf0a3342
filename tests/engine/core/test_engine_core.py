"""The core contains faults: what goes wrong in one request or one step ends that and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs
from vllm_engine.core.engine_core import MAX_CONSECUTIVE_FAILURES, EngineCore
from vllm_engine.errors import EngineDead
from vllm_engine.messages import EngineRequest, RequestUpdate
from vllm_engine.params import SamplingParams


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCore:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    make_tiny_model("llama", tmp_path)
    args = EngineArgs(
        str(tmp_path), dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**24, max_num_seqs=2, block_size=4
    )
    return EngineCore(args.create_config(), tmp_path)


def request(name: str, prompt: list[int], count: int = 5, **params: Any) -> EngineRequest:
    return EngineRequest(name, prompt, SamplingParams(temperature=0.0, **params), count, 0, [], [], [])


def run(core: EngineCore) -> dict[str, list[RequestUpdate]]:
    updates: dict[str, list[RequestUpdate]] = {}
    while core.has_unfinished():
        for update in core.step().updates:
            updates.setdefault(update.request_id, []).append(update)
    return updates


def tokens(updates: list[RequestUpdate]) -> list[int]:
    return [token for update in updates for token in update.new_token_ids]


@pytest.mark.parametrize("prompt", [[], [-1], [10**6], [1] * 65], ids=["empty", "negative", "beyond", "too long"])
def test_a_request_that_would_index_out_of_bounds_ends_with_an_error(core: EngineCore, prompt: list[int]) -> None:
    core.add([request("bad", prompt), request("good", [1, 2, 3])])
    updates = run(core)
    assert updates["bad"][-1].finish_reason == "error" and updates["bad"][-1].error
    assert len(tokens(updates["good"])) == 5


def test_a_token_id_outside_the_vocabulary_in_a_parameter_ends_only_its_request(core: EngineCore) -> None:
    core.add([request("bad", [1, 2], allowed_token_ids=[10**6]), request("good", [1, 2, 3])])
    updates = run(core)
    assert updates["bad"][-1].finish_reason == "error"
    assert len(tokens(updates["good"])) == 5


def test_a_step_that_raises_ends_its_requests_and_the_waiting_ones_get_their_solo_result(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.add([request("solo", [7, 8, 9])])
    expected = tokens(run(core)["solo"])
    core.add([request("a", [1, 2, 3]), request("b", [4, 5, 6]), request("waiting", [7, 8, 9])])
    core.step()
    runner = core.executor.worker.runner
    original, calls = runner._forward, 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("injected")
        return original(*args)

    monkeypatch.setattr(runner, "_forward", failing)
    updates = run(core)
    assert updates["a"][-1].finish_reason == updates["b"][-1].finish_reason == "error"
    assert tokens(updates["waiting"]) == expected


def test_a_step_that_ctrl_c_ends_leaves_nothing_in_the_prefix_cache(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks had their names before they were to be filled: the next equal prompt must not believe them."""
    prompt = list(range(10, 40))
    core.add([request("solo", prompt)])
    expected = tokens(run(core)["solo"])
    core.call("reset_prefix_cache", [])
    runner = core.executor.worker.runner
    for cache in runner._kv_caches:
        cache.key.fill_(3.0)
        cache.value.fill_(3.0)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    core.add([request("other", [1, 2, 3], count=20)])
    core.step()
    core.add([request("cut", prompt)])
    with monkeypatch.context() as patch:
        patch.setattr(runner.model, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            core.step()
    core.abort(["cut", "other"])  # as LLM does
    core.add([request("again", prompt), request("more", [4, 5, 6])])
    updates = run(core)
    assert tokens(updates["again"]) == expected
    assert len(tokens(updates["more"])) == 5
    core.scheduler.schedule()
    assert core.scheduler.kv.pool.num_used == 0


def test_a_request_that_leaves_within_its_prompt_leaves_no_row(core: EngineCore) -> None:
    core.scheduler._token_budget = 4
    core.add([request("leaves", list(range(1, 20)), prompt_logprobs=1), request("stays", [1, 2, 3])])
    core.step()
    batch = core.executor.worker.runner.batch
    assert list(batch.wants_prompt_logprobs) == ["leaves"]
    core.abort(["leaves"])
    run(core)
    core.executor.execute(core.scheduler.schedule())
    assert batch.wants_prompt_logprobs == {}
    assert batch._row_of == {} and batch.states == [None] * 2


def test_an_engine_whose_steps_keep_failing_gives_up(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(core.executor.worker.runner.model, "embed", failing)
    core.add([request(f"r{index}", [1, 2, 3]) for index in range(20)])
    with pytest.raises(EngineDead):
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            core.step()


def test_a_step_that_fails_before_it_has_begun_loses_no_row(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch that told which rows are free again never arrived."""
    core.add([request("done", [1, 2, 3], count=1)])
    core.step()

    def failing(_: Any) -> None:
        raise MemoryError

    core.add([request("bad", [1, 2, 3])])
    with monkeypatch.context() as patch:
        patch.setattr(core.executor.worker.runner, "_update_batch", failing)
        core.step()
    core.add([request(name, [1, 2, 3], count=2) for name in ("a", "b")])
    updates = run(core)
    assert len(tokens(updates["a"])) == len(tokens(updates["b"])) == 2


def test_failed_steps_with_sound_ones_between_them_are_no_reason_to_give_up(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = core.executor.worker.runner.model

    def failing(*args: Any) -> Any:
        raise RuntimeError("injected")

    for index in range(2 * MAX_CONSECUTIVE_FAILURES):
        core.add([request(f"bad{index}", [1, 2, 3])])
        with monkeypatch.context() as patch:
            patch.setattr(model, "embed", failing)
            (update,) = core.step().updates
        assert update.finish_reason == "error"
        core.add([request(f"good{index}", [1, 2, 3], count=2)])
        assert len(tokens(run(core)[f"good{index}"])) == 2


def test_nan_in_one_row_of_the_logits_ends_only_that_request(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    core.add([request("good", [1, 2, 3])])
    expected = tokens(run(core)["good"])
    runner = core.executor.worker.runner
    original = runner.model.compute_logits

    def poisoned(hidden: Any) -> Any:
        logits = original(hidden)
        logits[0] = float("nan")
        return logits

    core.add([request("bad", [9, 9]), request("good", [1, 2, 3])])
    monkeypatch.setattr(runner.model, "compute_logits", poisoned)
    updates = {update.request_id: update for update in core.step().updates}
    monkeypatch.setattr(runner.model, "compute_logits", original)
    if not updates:  # where steps are launched ahead, they come with the next one
        updates = {update.request_id: update for update in core.step().updates}
    assert updates["bad"].finish_reason == "error" and "NaN" in str(updates["bad"].error)
    rest = run(core)["good"]
    assert updates["good"].new_token_ids + tokens(rest) == expected
