"""Log-probabilities that nobody has taken yet have a bound, and who holds most is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.frontend.test_output_processor import TOKENIZER, ids, prepare
from tests.engine.models.tiny import make_tiny_model
from vllm_engine import async_llm
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_engine.errors import InvalidRequest, Overloaded
from vllm_engine.frontend.held_logprobs import HeldLogprobs
from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.messages import PositionLogprobs, RequestUpdate
from vllm_engine.params import OutputKind, SamplingParams
from vllm_server.answers.generation import Generation


def test_one_that_holds_more_than_there_is_room_for_is_refused() -> None:
    holding = HeldLogprobs(10).hold()
    holding.add(10)
    with pytest.raises(InvalidRequest) as caught:
        holding.add(1)
    assert caught.value.field == "logprobs"


def test_who_holds_least_may_go_on_when_all_hold_too_many() -> None:
    held = HeldLogprobs(10)
    large, small = held.hold(), held.hold()
    large.add(8)
    small.add(3)
    with pytest.raises(Overloaded):
        large.add(1)
    small.add(2)
    large.clear()
    small.add(5)


def test_without_a_bound_nothing_is_refused() -> None:
    HeldLogprobs(None).hold().add(1 << 40)


def test_a_refused_request_ends_in_the_core_and_tells_why() -> None:
    held = HeldLogprobs(5)
    outputs = OutputProcessor(TOKENIZER)
    prepared, other = prepare(request_id="large", n=2, logprobs=1), prepare(request_id="other", logprobs=1)
    for each in (prepared, other):
        outputs.add(each, kind=OutputKind.FINAL_ONLY, holding=held.hold())
    position = PositionLogprobs([ids("a")[0], ids("b")[0]], [-1.0, -2.0], 1)
    own = [request.request_id for request in prepared.requests]

    def step() -> list[RequestUpdate]:
        return [RequestUpdate(engine_id, ids("a"), logprobs=[position]) for engine_id in own]

    assert not outputs.process(step(), 1.0).refused
    result = outputs.process(step(), 2.0)
    assert isinstance(result.refused["large"], InvalidRequest)
    assert (result.outputs, sorted(result.aborts)) == ([], sorted(own))
    assert [stats.finish_reason for stats in result.finished] == ["abort"]
    assert outputs.num_requests == 1


def test_too_many_of_a_prompt_are_told_as_those_of_the_prompt() -> None:
    outputs = OutputProcessor(TOKENIZER)
    prepared = prepare(prompt="abcd", prompt_logprobs=1)
    outputs.add(prepared, kind=OutputKind.FINAL_ONLY, holding=HeldLogprobs(5).hold())
    position = PositionLogprobs([ids("a")[0], ids("b")[0]], [-1.0, -2.0], 1)
    (own,) = (request.request_id for request in prepared.requests)
    (refusal,) = outputs.process([RequestUpdate(own, [], prompt_logprobs=[position] * 3)], 1.0).refused.values()
    assert isinstance(refusal, InvalidRequest)
    assert refusal.field == "prompt_logprobs"


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(async_llm, "MAX_HELD_LOGPROBS", 60)
    yield


async def test_a_whole_answer_that_holds_too_many_is_refused_and_a_stream_of_it_is_not(
    little_room: None, tmp_path: Path
) -> None:
    make_tiny_model("llama", tmp_path)
    args = EngineArgs(
        str(tmp_path), dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**23, skip_tokenizer_init=True
    )
    async with AsyncLLM(args, multiprocess=False, bounded=True) as llm:
        whole = SamplingParams(
            max_tokens=40, ignore_eos=True, temperature=0.0, logprobs=3, output_kind=OutputKind.FINAL_ONLY
        )
        with pytest.raises(InvalidRequest, match="until it is sent"):
            _ = [output async for output in llm.generate([5, 6, 7], whole)]
        stream = SamplingParams(
            max_tokens=40, ignore_eos=True, temperature=0.0, logprobs=3, output_kind=OutputKind.DELTA
        )
        parts = [output async for output in llm.generate([5, 6, 7], stream)]
        assert sum(len(part.outputs[0].token_ids) for part in parts) == 40
        assert llm.num_requests == 0
        assert llm.held_logprobs._total == 0


async def test_prompts_of_one_answer_hold_together_until_it_is_sent(little_room: None, tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    args = EngineArgs(
        str(tmp_path),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=1,
        kv_cache_memory_bytes=2**23,
        skip_tokenizer_init=True,
    )
    each = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0, logprobs=3, output_kind=OutputKind.FINAL_ONLY)
    async with AsyncLLM(args, multiprocess=False, bounded=True) as llm:
        assert len(await Generation(llm, [[5, 6, 7]] * 3, each, "few").final_outputs()) == 3
        with pytest.raises(InvalidRequest, match="until it is sent"):
            await Generation(llm, [[5, 6, 7]] * 8, each, "many").final_outputs()
        assert llm.num_requests == 0
        assert llm.held_logprobs._total == 0
