"""Hundreds of random requests, most of them wrong in some way, beside one that must not notice.

Whatever a user gives, one of three things happens: tokens, ``InvalidRequest`` with the name of a field, or an end that
was asked for. The engine goes on, holds nothing of anyone afterwards, and all that it was sent can cross a process
boundary.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer
from vllm_engine import AsyncLLM, EngineArgs, OutputKind, RequestOutput, SamplingParams
from vllm_engine.core.clients.base import AsyncClient
from vllm_engine.errors import InvalidRequest
from vllm_engine.messages import EngineRequest

NUM_CASES = 400
AT_ONCE = 12
MAX_MODEL_LEN = 64

WILD: list[Any] = [
    None, True, 0, -1, 1, 5, 2**31, 2**63, 10**400, 0.0, -0.5, 0.5, 1e-30, 1e38, 1e300, math.nan, math.inf,
    np.float64(0.5), np.int64(3), np.str_("a"), "", "a", "\ud800", "\0", b"x", [], {}, [None], [1], ["a"], {"a": 1},
    {1: 1}, {1: math.nan}, object(), range(3), (1, 2),
]  # fmt: skip
SANE: dict[str, list[Any]] = {
    "n": [1, 2, 5],
    "temperature": [0, 0.7, 1e-4, 1e-6, 3e38, 1],
    "top_p": [1, 0.5, 1e-300],
    "top_k": [-1, 0, 1, 7, 10**6],
    "min_p": [0, 0.1, 1],
    "repetition_penalty": [1, 1.3, 1e-20, 1e20],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "seed": [None, 0, -(2**63), 2**63 - 1],
    "stop": ["a", ["th", "e"], ["猫"]],
    "stop_token_ids": [[2], list(range(0, VOCAB_SIZE, 2)), [VOCAB_SIZE - 1], [VOCAB_SIZE]],
    "bad_words": [["the"], ["a", " b"], [" "], ["\u0301"]],
    "include_stop_str_in_output": [True],
    "ignore_eos": [True],
    "min_tokens": [0, 1, 4, 60],
    "max_tokens": [None, 1, 4, 10**9],
    "logprobs": [-1, 0, 3, VOCAB_SIZE],
    "prompt_logprobs": [-1, 0, 3],
    "logit_bias": [{5: 100.0, 6: -100}, {VOCAB_SIZE: 1}, {}],
    "allowed_token_ids": [[5, 6], [VOCAB_SIZE], [2], [5] * 5000],
    "skip_special_tokens": [False],
    "spaces_between_special_tokens": [False],
    "truncate_prompt_tokens": [-1, 1, 7, MAX_MODEL_LEN - 1, MAX_MODEL_LEN],
    "detokenize": [False],
    "output_kind": list(OutputKind),
}
PROMPTS: list[Any] = [
    "the quick brown fox", "x", "a" * 40, "猫 é \0", "x" * 10_000, [1], [VOCAB_SIZE - 1], [VOCAB_SIZE],
    list(range(MAX_MODEL_LEN - 1)), list(range(MAX_MODEL_LEN)), {"prompt": "hello"}, {"prompt_token_ids": [5, 6, 7]},
    {"prompt": "hi", "cache_salt": "s"}, {"prompt": "hi", "add_special_tokens": False}, {"prompt": "hi", "other": 1},
    {"prompt": 5}, {"prompt_token_ids": (1, 2)}, {"prompt": "x", "multi_modal_data": {}},
]  # fmt: skip


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    make_tiny_model("gemma3", path)  # full and sliding layers: several groups of KV blocks
    make_tiny_tokenizer(path)
    return path


def random_call(rng: random.Random) -> dict[str, Any]:
    """Arguments of ``generate``; the parameters as a dict, as making them may be refused as well."""
    fields = {name: rng.choice(SANE[name]) for name in rng.sample(sorted(SANE), rng.randrange(8))}
    fields.setdefault("max_tokens", rng.randrange(1, 12))
    if rng.random() < 0.15:
        fields[rng.choice(sorted(SANE))] = rng.choice(WILD)
    call: dict[str, Any] = {"prompt": rng.choice(PROMPTS), "fields": fields}
    if rng.random() < 0.08:
        call["prompt"] = rng.choice(WILD)
    for name, sane in (("priority", [-5, 0, 3]), ("cache_salt", ["a", "b"])):
        if rng.random() < 0.3:
            call[name] = rng.choice(WILD if rng.random() < 0.3 else sane)
    if rng.random() < 0.1:
        call["request_id"] = rng.choice(["same", "same", *WILD])
    return call


async def take(stream: AsyncGenerator[RequestOutput, None]) -> list[int]:
    token_ids: list[int] = []
    async for output in stream:
        token_ids = output.outputs[0].token_ids
    return token_ids


async def until_idle(llm: AsyncLLM) -> None:
    async with asyncio.timeout(10):
        while llm.scheduler_stats.num_running or llm.scheduler_stats.num_waiting:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
async def test_nothing_that_a_user_gives_harms_the_engine_or_another_request(
    model_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    sent: list[EngineRequest] = []
    add = AsyncClient.add

    def record(client: AsyncClient, requests: list[EngineRequest]) -> None:
        sent.extend(requests)
        add(client, requests)

    monkeypatch.setattr(AsyncClient, "add", record)
    rng = random.Random(f"fuzz {policy}")
    args = EngineArgs(
        str(model_path),
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        block_size=4,
        max_num_seqs=10,
        max_num_batched_tokens=40,
        long_prefill_token_threshold=24,
        num_gpu_blocks_override=70,
        max_logprobs=-1,
        scheduling_policy=policy,
    )
    outcomes = {"tokens": 0, "refused": 0, "aborted": 0}
    failures: list[str] = []

    async with AsyncLLM(args, multiprocess=False) as llm:
        control = ("the lazy dog", SamplingParams(temperature=0.8, seed=7, max_tokens=30, ignore_eos=True))
        solo = await take(llm.generate(*control))
        done = asyncio.Event()

        async def ask() -> None:
            call = random_call(rng)
            leave_after = rng.choice([None, None, None, 0, 1, 3])
            shown = repr(call)[:300]
            try:
                params = SamplingParams(**call.pop("fields"))
                stream = llm.generate(call.pop("prompt"), params, **call)
                seen = 0
                async for output in stream:
                    seen += 1
                    assert all(completion.error is None for completion in output.outputs)
                    if seen == leave_after:
                        await stream.aclose()
                        outcomes["aborted"] += 1
                        return
                assert output.finished
                outcomes["tokens"] += 1
            except InvalidRequest as error:
                assert error.field, shown
                outcomes["refused"] += 1
            except Exception as error:
                failures.append(f"{shown}: {type(error).__name__}: {error}")

        async def ask_in_turn() -> None:
            for _ in range(NUM_CASES // AT_ONCE):
                await ask()

        async def control_again_and_again() -> int:
            count = 0
            while not done.is_set():
                assert await take(llm.generate(*control, priority=100)) == solo
                count += 1
            return count

        watch = asyncio.create_task(control_again_and_again())
        async with asyncio.timeout(60):
            await asyncio.gather(*(ask_in_turn() for _ in range(AT_ONCE)))
            done.set()
            assert await watch > 0
        assert failures == []
        await until_idle(llm)
        llm.check_health()
        assert llm.num_requests == 0
        assert llm._outputs is not None and llm._outputs.num_requests == 0 and not llm._outputs._by_engine_id
        assert await take(llm.generate(*control)) == solo
        await until_idle(llm)
        assert llm.scheduler_stats.kv_cache_usage == 0
        assert llm.scheduler_stats.num_preemptions > 0
    assert min(outcomes["tokens"], outcomes["refused"], outcomes["aborted"]) > 30, outcomes
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=list[EngineRequest]) == sent
