"""Updates of the core on their way to users."""

from typing import Any

import pytest

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.config import EngineArgs
from vllm_engine.config.generation import GenerationConfig
from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend.detokenizer import Detokenizer
from vllm_engine.frontend.input_processor import InputProcessor, PreparedRequest
from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.messages import PositionLogprobs, RequestUpdate
from vllm_engine.outputs import Logprob, RequestOutput
from vllm_engine.params import OutputKind, SamplingParams

TOKENIZER = tiny.load("byte_level")
INPUTS = InputProcessor(
    EngineArgs("demo").create_config(), TOKENIZER, GenerationConfig(), max_model_len=512, vocab_size=350
)
EOS = TOKENIZER.eos_token_id or 0
KINDS = list(OutputKind)


def prepare(prompt: Any = "the cat", request_id: str = "r", **params: Any) -> PreparedRequest:
    return INPUTS.process(request_id, prompt, SamplingParams(**params))


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


class Run:
    """One request, fed with tokens by hand; keeps every output."""

    def __init__(self, **params: Any) -> None:
        self.prepared = prepare(**params)
        self.outputs = OutputProcessor(TOKENIZER)
        self.outputs.add(self.prepared)
        self.seen: list[RequestOutput] = []
        self.aborts: list[str] = []
        self.clock = self.prepared.queued_ts

    def engine_id(self, index: int = 0) -> str:
        return self.prepared.requests[index].request_id

    def feed(self, *tokens: int, index: int = 0, **update: Any) -> None:
        self.clock += 1.0
        result = self.outputs.process([RequestUpdate(self.engine_id(index), list(tokens), **update)], self.clock)
        self.seen.extend(result.outputs)
        self.aborts.extend(result.aborts)
        self.last = result

    def text(self, index: int = 0) -> str:
        """What a user has read of a completion."""
        texts = [c.text for output in self.seen for c in output.outputs if c.index == index]
        return "".join(texts) if self.prepared.params.output_kind is OutputKind.DELTA else (texts or [""])[-1]

    def token_ids(self, index: int = 0) -> list[int]:
        lists = [c.token_ids for output in self.seen for c in output.outputs if c.index == index]
        if self.prepared.params.output_kind is OutputKind.DELTA:
            return [token_id for part in lists for token_id in part]
        return (lists or [[]])[-1]


@pytest.mark.parametrize("step", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_same_however_it_is_given_out(kind: OutputKind, step: int) -> None:
    tokens = ids("the cat 😀 sat 你好 on the mat")
    run = Run(output_kind=kind)
    for i in range(0, len(tokens), step):
        part = tokens[i : i + step]
        run.feed(*part, finish_reason="length" if i + step >= len(tokens) else None)
    assert run.text() == "the cat 😀 sat 你好 on the mat"
    assert run.token_ids() == tokens
    final = run.seen[-1]
    assert final.finished
    assert final.outputs[0].finish_reason == "length"
    assert [output.finished for output in run.seen[:-1]] == [False] * (len(run.seen) - 1)
    assert len(run.seen) == (1 if kind is OutputKind.FINAL_ONLY else -(-len(tokens) // step))
    assert run.outputs.num_requests == 0


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_ends_the_text_cuts_later_tokens_and_aborts_in_the_core(kind: OutputKind, step: int) -> None:
    tokens = ids("the cat sat on the mat and the dog")
    run = Run(stop=["t o", "zzz"], output_kind=kind, logprobs=0)
    for i in range(0, len(tokens), step):
        part = tokens[i : i + step]
        run.feed(*part, logprobs=[PositionLogprobs([t], [-1.0], 1) for t in part])
    assert run.text() == "the cat sa"
    completion = run.seen[-1].outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "t o")
    kept = run.token_ids()
    assert kept == tokens[: len(kept)]
    assert "t o" in TOKENIZER.decode(kept)
    assert "t o" not in TOKENIZER.decode(kept[:-1])
    assert completion.cumulative_logprob == -len(kept)
    assert run.aborts == [run.engine_id()]
    assert run.seen[-1].finished


def test_a_stop_string_in_the_last_token_needs_no_abort() -> None:
    run = Run(stop=["cat"])
    run.feed(*ids("the cat"), finish_reason="length")
    assert (run.seen[-1].outputs[0].finish_reason, run.seen[-1].outputs[0].stop_reason) == ("stop", "cat")
    assert run.aborts == []


def test_an_end_token_counts_as_token_but_is_no_text() -> None:
    for include, skip, expected in ((False, False, "a"), (True, True, "a"), (True, False, "a<|im_end|>")):
        run = Run(include_stop_str_in_output=include, skip_special_tokens=skip)
        run.feed(*ids("a"), EOS, finish_reason="stop")
        assert run.text() == expected
        assert run.token_ids() == [*ids("a"), EOS]
        assert run.seen[-1].outputs[0].stop_reason is None


def test_a_stop_token_is_told_as_the_reason() -> None:
    (dot,) = ids(".")
    run = Run(stop_token_ids=[dot])
    run.feed(*ids("a"), dot, finish_reason="stop", stop_reason=dot)
    assert run.text() == "a"
    assert run.seen[-1].outputs[0].stop_reason == dot


def test_text_held_for_a_stop_string_goes_out_when_the_request_ends_otherwise() -> None:
    for end in ({"finish_reason": "length"}, {"finish_reason": "stop"}):
        run = Run(stop=["catx"], output_kind=OutputKind.DELTA)
        run.feed(*ids("the cat"))
        assert run.text() == "the "
        run.feed(EOS, **end)
        assert run.text() == "the cat"


def test_logprobs_carry_the_tokens_as_text_and_the_rank() -> None:
    (the, cat) = ids("the cat")
    run = Run(logprobs=2)
    run.feed(the, logprobs=[PositionLogprobs([the, cat, the], [-2.0, -0.5, -2.0], 2)])
    run.feed(cat, logprobs=[PositionLogprobs([cat, the, the + 1], [-9.0, -0.1, -3.0], 50)], finish_reason="length")
    completion = run.seen[-1].outputs[0]
    assert completion.logprobs is not None
    assert completion.logprobs[0] == {the: Logprob(-2.0, 2, "the"), cat: Logprob(-0.5, 1, " cat")}
    assert list(completion.logprobs[1]) == [cat, the, the + 1]
    assert completion.logprobs[1][cat] == Logprob(-9.0, 50, " cat")
    assert completion.cumulative_logprob == -11.0


def test_prompt_logprobs_begin_with_none() -> None:
    for kind in KINDS:
        run = Run(prompt=ids("the cat sat"), prompt_logprobs=0, output_kind=kind)
        prompt = run.prepared.prompt_token_ids
        run.feed(5, prompt_logprobs=[PositionLogprobs([i], [-1.0], 3) for i in prompt[1:]])
        run.feed(6, finish_reason="length")
        shown = run.seen[-1] if kind is not OutputKind.DELTA else run.seen[0]
        assert shown.prompt_logprobs is not None
        assert shown.prompt_logprobs[0] is None
        assert [list(entry or {}) for entry in shown.prompt_logprobs[1:]] == [[i] for i in prompt[1:]]
        if kind is OutputKind.DELTA:
            assert run.seen[1].prompt_logprobs is None


@pytest.mark.parametrize("kind", KINDS)
def test_several_completions_are_one_request(kind: OutputKind) -> None:
    run = Run(n=3, output_kind=kind, stop=["!"])
    (a, b, stop) = ids("a"), ids("b"), ids("!")
    run.feed(*a, index=1)
    run.feed(*b, index=0, finish_reason="length")
    run.feed(*stop, index=1)
    run.feed(*a, index=2, finish_reason="length")
    assert [run.text(i) for i in range(3)] == ["b", "a", "a"]
    assert [output.finished for output in run.seen] == [False] * (len(run.seen) - 1) + [True]
    assert run.aborts == [run.engine_id(1)]
    if kind is OutputKind.DELTA:
        assert [[c.index for c in output.outputs] for output in run.seen] == [[1], [0], [1], [2]]
    else:
        assert all([c.index for c in output.outputs] == [0, 1, 2] for output in run.seen)
        assert [c.finish_reason for c in run.seen[-1].outputs] == ["length", "stop", "length"]


def test_completions_that_move_in_one_step_come_in_one_output() -> None:
    run = Run(n=2, output_kind=OutputKind.DELTA)
    updates = [RequestUpdate(run.engine_id(i), ids("a")) for i in (1, 0)]
    result = run.outputs.process(updates, 1.0)
    assert [[c.index for c in output.outputs] for output in result.outputs] == [[0, 1]]


def test_an_output_that_was_given_out_does_not_change_any_more() -> None:
    for kind in (OutputKind.CUMULATIVE, OutputKind.DELTA):
        run = Run(output_kind=kind, logprobs=0)
        run.feed(5, logprobs=[PositionLogprobs([5], [-1.0], 1)])
        first = run.seen[0].outputs[0]
        run.feed(6, logprobs=[PositionLogprobs([6], [-1.0], 1)])
        assert first.token_ids == [5]
        assert [list(entry) for entry in first.logprobs or []] == [[5]]


def test_new_tokens_of_a_delta_cost_the_same_at_any_length() -> None:
    run = Run(output_kind=OutputKind.DELTA, max_tokens=None)
    for _ in range(400):
        run.feed(*ids("a"))
    state = run.outputs._requests["r"].completions[0]
    assert state._token_ids == []
    assert state._text == ""
    assert len(run.seen[-1].outputs[0].token_ids) == 1


def test_aborted_requests_end_with_what_they_have() -> None:
    run = Run(n=2, stop=["catx"], output_kind=OutputKind.CUMULATIVE)
    run.feed(*ids("the cat"), index=0)
    run.feed(*ids("b"), index=1, finish_reason="length")
    engine_ids, result = run.outputs.abort(["r", "unknown"])
    assert engine_ids == [run.engine_id(0)]
    (output,) = result.outputs
    assert output.finished
    assert [(c.text, c.finish_reason) for c in output.outputs] == [("the cat", "abort"), ("b", "length")]
    assert run.outputs.abort(["r"]) == ([], run.outputs.process([], 0.0))
    run.seen.clear()
    run.feed(*ids("late"))
    assert run.seen == []


def test_a_failure_in_the_core_is_told_with_its_message() -> None:
    run = Run()
    run.feed(finish_reason="error", error="NaN logits")
    (output,) = run.seen
    assert output.finished
    assert (output.outputs[0].finish_reason, output.outputs[0].error) == ("error", "NaN logits")
    assert run.last.finished[0].finish_reason == "error"


def test_a_request_that_cannot_be_processed_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = OutputProcessor(TOKENIZER)
    good, bad = prepare(request_id="good"), prepare(request_id="bad")
    outputs.add(good)
    outputs.add(bad)
    monkeypatch.setattr(outputs._requests["bad"].completions[0], "_detokenizer", _Broken())
    updates = [RequestUpdate(p.requests[0].request_id, ids("a")) for p in (bad, good)]
    result = outputs.process(updates, 1.0)
    by_id = {output.request_id: output.outputs[0] for output in result.outputs}
    assert by_id["bad"].finish_reason == "error"
    assert by_id["good"].text == "a"
    assert result.aborts == [bad.requests[0].request_id]
    assert outputs.num_requests == 1


class _Broken(Detokenizer):
    def __init__(self) -> None:
        pass

    def push(self, token_id: int) -> tuple[str, str | None]:
        raise RuntimeError("broken")


def test_the_same_request_id_cannot_run_twice() -> None:
    outputs = OutputProcessor(TOKENIZER)
    outputs.add(prepare())
    with pytest.raises(InvalidRequest) as caught:
        outputs.add(prepare())
    assert caught.value.field == "request_id"


def test_without_detokenizing_only_ids_come_out() -> None:
    for tokenizer in (TOKENIZER, None):
        outputs = OutputProcessor(tokenizer)
        prepared = prepare(detokenize=False, logprobs=0)
        outputs.add(prepared)
        update = RequestUpdate(prepared.requests[0].request_id, [5], logprobs=[PositionLogprobs([5], [-1.0], 1)])
        (output,) = outputs.process([update], 1.0).outputs
        assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", [5])
        assert output.outputs[0].logprobs == [{5: Logprob(-1.0, 1, None)}]


def test_times_and_counts_add_up() -> None:
    run = Run(n=2, stop=["!"], max_tokens=9)
    start = run.prepared.queued_ts
    run.feed(*ids("a"), index=0, scheduled_ts=start + 0.25, num_cached_tokens=3, num_preemptions=1)
    assert run.last.totals.num_prompt_tokens == len(run.prepared.prompt_token_ids)
    assert run.last.totals.times_to_first_token == [1.0]
    run.feed(*ids("a"), index=1, num_cached_tokens=9, num_preemptions=2)
    assert (
        run.last.totals.num_prompt_tokens,
        run.last.totals.times_to_first_token,
        run.last.totals.inter_token_latencies,
    ) == (0, [], [])
    run.feed(*ids("b"), *ids("c"), index=0, num_preemptions=1, finish_reason="length")
    assert run.last.totals.inter_token_latencies == [1.0, 1.0]
    run.feed(*ids("!"), *ids("x"), *ids("y"), index=1, num_preemptions=2)
    assert run.last.totals.num_generation_tokens == 1
    (stats,) = run.last.finished
    assert stats.num_generation_tokens == 5
    assert (stats.num_prompt_tokens, stats.num_cached_tokens, stats.num_preemptions) == (
        len(run.prepared.prompt_token_ids),
        3,
        3,
    )
    assert (stats.n, stats.max_tokens, stats.finish_reason) == (2, 9, "length")
    assert stats.queue_time == pytest.approx(0.25)
    assert stats.prefill_time == pytest.approx(0.75)
    assert stats.time_to_first_token == pytest.approx(1.0)
    assert stats.decode_time == pytest.approx(3.0)
    assert stats.inference_time == pytest.approx(3.75)
    assert stats.e2e_latency == pytest.approx(4.0)
    assert stats.mean_time_per_output_token == pytest.approx(4 / 3)
    metrics = run.seen[-1].metrics
    assert metrics.num_preemptions == 3
    assert metrics.first_token_ts - metrics.queued_ts == pytest.approx(1.0)
    assert run.seen[-1].num_cached_tokens == 3
