"""How many threads compute a step: more for prompts than for a token of each sequence, with the same results."""

import json
import os
from pathlib import Path

import pytest
import torch

from vllm_engine import LLM, SamplingParams
from vllm_engine.execution import step_threads, thread_binding, worker
from vllm_engine.execution.devices import cpu
from vllm_engine.execution.step_threads import LONG_STEP_WORK, StepThreads
from vllm_engine.execution.thread_plan import ThreadPlan
from vllm_kernels.cpu.threads import team_thread_ids

pytestmark = pytest.mark.cpu_only


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("usual", "most", "num_tokens", "expected"),
    [
        (1, 2, 255, 1),
        (1, 2, 256, 2),
        (1, 1, 10_000, 1),
        (2, 2, 10_000, 2),
        (2, 3, 10_000, 2),  # never another team than one thread or a single size
    ],
)
def test_long_steps_get_all_threads_and_give_them_back(usual: int, most: int, num_tokens: int, expected: int) -> None:
    threads = StepThreads(usual, most, LONG_STEP_WORK // 256, 1)
    torch.set_num_threads(usual)
    with threads.computing(num_tokens, 0):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == usual


@pytest.mark.parametrize(
    ("beside", "new_requests", "expected"),
    [
        (True, 0, 2),
        (True, 18, 2),  # 20.5 ms of one core beside 19.8 of the frontend
        (True, 19, 1),
        (False, 1000, 2),
    ],
)
def test_short_prompts_leave_a_core_to_the_frontend_beside(
    monkeypatch: pytest.MonkeyPatch, beside: bool, new_requests: int, expected: int
) -> None:
    monkeypatch.setattr(step_threads, "_beside_frontend", beside)
    monkeypatch.setattr(step_threads, "FRONTEND_SECONDS", 1.1e-3)
    monkeypatch.setattr(step_threads, "_prompt_rate", lambda: 1e11)
    threads = StepThreads(1, 2, 10**6, 4)
    torch.set_num_threads(1)
    with threads.computing(512, new_requests):
        assert torch.get_num_threads() == expected


def test_a_step_that_fails_gives_them_back() -> None:
    torch.set_num_threads(1)
    with pytest.raises(ZeroDivisionError), StepThreads(1, 2, LONG_STEP_WORK, 1).computing(1, 0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("cores", "ids", "during"),
    [
        ({0, 1}, [11, 12], {11: {1}, 12: {0}}),  # the caller stays where it runs, on core 1
        ({1, 2, 5}, [11, 12, 13], {11: {1}, 12: {2}, 13: {5}}),
        ({0, 1, 2}, [11, 12], {}),  # the system has a choice
        ({1}, [11, 12], {}),
        ({0, 1}, [11], {}),
        ({0, 1}, None, {}),
    ],
)
def test_threads_are_kept_apart_for_as_long_as_a_step_takes(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], ids: list[int] | None, during: dict[int, set[int]]
) -> None:
    bound: dict[int, set[int]] = {}
    monkeypatch.setattr(thread_binding, "team_thread_ids", lambda threads: ids)
    monkeypatch.setattr(thread_binding, "current_core", lambda: 1)
    monkeypatch.setattr(thread_binding.os, "sched_getaffinity", lambda thread_id: cores)
    monkeypatch.setattr(thread_binding.os, "sched_setaffinity", bound.__setitem__)
    threads = len(during) or 2
    with pytest.raises(ZeroDivisionError), thread_binding.on_a_core_each(threads):
        assert bound == during
        raise ZeroDivisionError
    assert bound == dict.fromkeys(during, cores)


def test_real_threads_have_their_cores_back_after_a_long_step() -> None:
    before = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    with StepThreads(1, len(before), LONG_STEP_WORK, 1, apart=True).computing(1, 0):
        ids = team_thread_ids(len(before)) or []
        if len(ids) == len(before) > 1:
            assert set().union(*(os.sched_getaffinity(thread_id) for thread_id in ids)) == before
            assert all(len(os.sched_getaffinity(thread_id)) == 1 for thread_id in ids)
    assert all(os.sched_getaffinity(thread_id) == before for thread_id in [0, *ids])


def test_tokens_and_logprobs_are_the_same_bits_with_more_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = [{"prompt_token_ids": [(31 * place + 7 * index) % 500 for place in range(90)]} for index in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2, prompt_logprobs=1)
    seen: list[int] = []
    forward = worker.ModelRunner.launch

    def launch(self: worker.ModelRunner, batch: object) -> object:
        seen.append(torch.get_num_threads())
        return forward(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.ModelRunner, "launch", launch)
    monkeypatch.setattr(cpu, "plan_for_this_machine", lambda asked: ThreadPlan(2))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    answers = []
    for work in (2**40, 1):
        monkeypatch.setattr(step_threads, "LONG_STEP_WORK", work)
        llm = LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, max_model_len=256)
        seen.clear()  # of the warm-up
        outputs = llm.generate(prompts, params, use_tqdm=False)
        answers.append([(one.outputs[0].token_ids, one.outputs[0].logprobs, one.prompt_logprobs) for one in outputs])
        assert set(seen) == ({1} if work > 1 else {2})
        llm.close()
    assert answers[0] == answers[1]
