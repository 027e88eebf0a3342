"""Steps that are launched before the tokens of the one before are known, as on a GPU: nothing but the moment changes.

The CPU computes a step while it is launched, so what is tested is who waits for what, and what comes late for whom.
What each sampling field makes of it is held by ``test_isolation.py``.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.core.engine_core import MAX_CONSECUTIVE_FAILURES, EngineCore
from vllm_engine.errors import EngineDead
from vllm_engine.messages import EngineRequest, RequestUpdate
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.sampler import Sampling


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_tiny_model("qwen3", path)
    return path


@pytest.fixture
def core(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCore:
    monkeypatch.setattr(EngineConfig, "schedules_ahead", True)
    return make_core(model_path, monkeypatch)


def make_core(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> EngineCore:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    settings = {"dtype": "float32", "max_model_len": 64, "kv_cache_memory_bytes": 2**24, "block_size": 4}
    return EngineCore(EngineArgs(str(path), **settings | options).create_config(), path)


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


def alone(core: EngineCore, *prompts: list[int]) -> list[list[int]]:
    """What each prompt brings, and an empty prefix cache."""
    found = []
    for prompt in prompts:
        core.add([request("alone", prompt)])
        found.append(tokens(run(core)["alone"]))
    core.call("reset_prefix_cache", [])
    return found


def test_steps_are_scheduled_ahead_on_a_gpu_and_nowhere_else_unless_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpu(monkeypatch)
    for device, asked, ahead in (
        ("cuda", None, True),
        ("cuda", False, False),
        ("cuda", True, True),
        ("cpu", None, False),
    ):
        assert EngineArgs("demo", device=device, async_scheduling=asked).create_config().schedules_ahead is ahead


def test_tokens_are_waited_for_when_the_layers_of_the_next_step_are_under_way(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    decode, finish = core.executor.worker.runner._forward, Sampling.finish

    def layers(*args: Any) -> Any:
        events.append("layers")
        return decode(*args)

    def wait(sampling: Sampling) -> Any:
        events.append("wait")
        return finish(sampling)

    monkeypatch.setattr(core.executor.worker.runner, "_forward", layers)
    monkeypatch.setattr(Sampling, "finish", wait)
    core.add([request("r", [1, 2, 3], count=4)])
    assert len(tokens(run(core)["r"])) == 4
    # Nothing is computed once more: the length says when the end is.
    assert events == ["layers", *["layers", "wait"] * 3, "wait"]


def test_tokens_and_log_probabilities_are_those_of_steps_that_are_waited_for(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With chunks, too few blocks, and requests that end by a token that nobody foresees."""
    requests = [
        EngineRequest(
            f"r{index}",
            [(7 * place + index) % 60 for place in range(5 + 3 * index)],
            SamplingParams(
                temperature=1.0 if index % 2 else 0.0,
                repetition_penalty=1.3 if index % 3 else 1.0,
                logprobs=2 if index % 2 else None,
                prompt_logprobs=1 if index % 4 == 0 else None,
            ),
            20 - index,
            index,
            list(range(index, 60, 9)) if index % 3 == 0 else [],
            [],
            [],
        )
        for index in range(8)
    ]
    found = []
    for ahead in (False, True):
        monkeypatch.setattr(EngineConfig, "schedules_ahead", ahead)
        core = make_core(model_path, monkeypatch, num_gpu_blocks_override=18, max_num_batched_tokens=16, max_num_seqs=4)
        core.add(requests)
        updates = run(core)
        assert core.scheduler.stats().num_preemptions > 0
        assert core.scheduler.kv.pool.num_used == 0
        found.append(
            {
                name: (
                    tokens(of_request),
                    of_request[-1].finish_reason,
                    of_request[-1].stop_reason,
                    [round(one.logprobs[0], 3) for update in of_request for one in update.logprobs or ()],
                    [round(one.logprobs[0], 3) for update in of_request for one in update.prompt_logprobs or ()],
                )
                for name, of_request in updates.items()
            }
        )
    assert found[0] == found[1]
    assert {reason for _, reason, *_ in found[0].values()} == {"stop", "length"}


def test_a_launch_that_fails_ends_its_requests_after_the_tokens_under_way(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = alone(core, [1, 2, 3], [7, 8, 9])
    runner = core.executor.worker.runner
    core.add([request("a", [1, 2, 3])])
    for _ in range(3):
        core.step()

    def failing(*_: Any) -> Any:
        raise RuntimeError("injected")

    core.add([request("b", [7, 8, 9])])
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_forward", failing)
        (told, *ended) = core.step().updates
    assert told.new_token_ids == [first[2]] and told.finish_reason is None
    assert {update.request_id: update.finish_reason for update in ended} == {"a": "error", "b": "error"}
    core.add([request("again", [1, 2, 3]), request("more", [7, 8, 9])])
    updates = run(core)
    assert tokens(updates["again"]) == first and tokens(updates["more"]) == second


def test_a_step_under_way_that_fails_takes_the_next_one_with_it_and_no_other(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = alone(core, [7, 8, 9])
    core.scheduler._max_num_seqs = 1
    core.add([request("a", [1, 2, 3]), request("waiting", [7, 8, 9])])
    core.step()

    def failing(_: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "finish", failing)
        (ended,) = core.step().updates
    assert (ended.request_id, ended.finish_reason) == ("a", "error")
    assert tokens(run(core)["waiting"]) == expected


def test_an_engine_whose_steps_keep_failing_under_way_gives_up(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(Sampling, "finish", failing)
    with pytest.raises(EngineDead):
        for index in range(2 * MAX_CONSECUTIVE_FAILURES):
            core.add([request(f"r{index}", [1, 2, 3])])
            core.step()


def test_ctrl_c_ends_what_is_under_way_and_leaves_nothing_in_the_prefix_cache(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(10, 40))
    (expected,) = alone(core, prompt)
    core.add([request("cut", prompt)])
    core.step()

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(core.executor.worker.runner, "_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            core.step()
    (told,) = run(core)["cut"]
    assert told.finish_reason == "error"
    for cache in core.executor.worker.runner._kv_caches:
        cache.key.fill_(3.0)
        cache.value.fill_(3.0)
    core.add([request("again", prompt)])
    assert tokens(run(core)["again"]) == expected


def test_control_methods_and_aborts_find_no_step_half_done(core: EngineCore) -> None:
    first, second = alone(core, [1, 2, 3], [4, 5, 6])
    core.add([request("a", [1, 2, 3]), request("gone", [4, 5, 6])])
    core.step()
    assert core.has_unfinished()
    core.abort(["gone"])
    core.call("reset_prefix_cache", [True])  # all that runs is computed again
    assert tokens(run(core)["a"]) == first
    core.add([request("last", [4, 5, 6])])
    core.step()
    core.abort(["last"])
    run(core)
    assert not core.has_unfinished() and core.scheduler.kv.pool.num_used == 0
    core.add([request("last", [4, 5, 6])])
    assert tokens(run(core)["last"]) == second
