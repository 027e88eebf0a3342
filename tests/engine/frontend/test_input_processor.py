"""Requests of users on their way to the core: what is refused, and what defaults are filled in."""

import time
from typing import Any

import msgspec
import pytest

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.async_llm import LONG_TEXT_CHARS
from vllm_engine.config import EngineArgs
from vllm_engine.config.generation import GenerationConfig
from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.frontend.input_processor import InputProcessor, PreparedRequest, child_seed
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams

VOCAB = 350  # the model has some rows more than the tokenizer has tokens


def processor(
    *, kind: str | None = "byte_level", eos: tuple[int, ...] = (), max_model_len: int = 32, **options: Any
) -> InputProcessor:
    return InputProcessor(
        EngineArgs("demo", **options).create_config(),
        None if kind is None else tiny.load(kind),
        GenerationConfig({}, eos),
        max_model_len=max_model_len,
        vocab_size=VOCAB,
    )


def prepare(prompt: Any = "the cat", inputs: InputProcessor | None = None, **params: Any) -> PreparedRequest:
    return (inputs or processor()).process("r", prompt, SamplingParams(**params))


def refusal(prompt: Any = "the cat", inputs: InputProcessor | None = None, **params: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        prepare(prompt, inputs, **params)
    assert "0x" not in str(caught.value)
    return caught.value


def test_all_forms_of_a_prompt_mean_the_same() -> None:
    ids = tiny.load("byte_level").encode("the cat")
    for prompt in ("the cat", ids, {"prompt": "the cat"}, {"prompt_token_ids": ids}):
        assert prepare(prompt).prompt_token_ids == ids
    both = prepare({"prompt": "shown", "prompt_token_ids": ids})
    assert (both.prompt, both.prompt_token_ids) == ("shown", ids)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        None,
        5,
        b"bytes",
        ("a",),
        {},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": ["a"]},
        {"prompt_token_ids": "ab"},
        {"prompt": "a", "surprise": 1},
        ["a"],
        [1.0],
        [True],
        [None],
        [[1]],
        [-1],
        [VOCAB],
        [2**70],
        [10**5000],
        "\ud800",
    ],
)
def test_prompts_that_are_not_well_formed_are_refused(prompt: Any) -> None:
    assert refusal(prompt).field == "prompt"


@pytest.mark.parametrize("key", ["multi_modal_data", "mm_processor_kwargs"])
def test_prompts_with_more_than_text_are_refused_by_the_name_of_it(key: str) -> None:
    error = refusal({"prompt": "a", key: {"image": 1}})
    assert isinstance(error, Unsupported)
    assert key in str(error)


def test_text_with_its_own_special_tokens_gets_no_second_ones() -> None:
    inputs = processor(kind="llama")
    with_bos = prepare("the cat", inputs).prompt_token_ids
    without = prepare({"prompt": "the cat", "add_special_tokens": False}, inputs).prompt_token_ids
    assert with_bos == [1, *without]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths() -> None:
    error = refusal([5] * 32)
    assert error.field == "prompt"
    assert "32" in str(error)
    assert "31" in str(error)
    assert prepare([5] * 31).requests[0].max_tokens == 1


def test_a_text_that_cannot_fit_is_refused_without_tokenizing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = processor()
    monkeypatch.setattr(inputs.tokenizer, "encode", lambda *_: pytest.fail("tokenized"))
    assert "at least" in str(refusal("a" * 10_000, inputs))


def test_truncation_keeps_the_last_tokens() -> None:
    ids = list(range(60))
    assert prepare(ids, truncate_prompt_tokens=4).prompt_token_ids == [56, 57, 58, 59]
    assert prepare(ids[:3], truncate_prompt_tokens=4).prompt_token_ids == ids[:3]
    assert prepare(ids, truncate_prompt_tokens=-1, max_tokens=10).prompt_token_ids == ids[-22:]
    assert prepare(ids, truncate_prompt_tokens=-1, max_tokens=None).prompt_token_ids == ids[-31:]
    assert prepare(ids, truncate_prompt_tokens=-1, max_tokens=1000).prompt_token_ids == ids[-1:]
    assert refusal(ids, truncate_prompt_tokens=32).field == "truncate_prompt_tokens"


def test_max_tokens_is_what_fits() -> None:
    assert prepare([1] * 10, max_tokens=None).requests[0].max_tokens == 22
    assert prepare([1] * 10, max_tokens=1000).requests[0].max_tokens == 22
    assert prepare([1] * 10, max_tokens=5).requests[0].max_tokens == 5
    assert refusal([1] * 10, max_tokens=None, min_tokens=23).field == "min_tokens"
    assert refusal([1] * 10, max_tokens=100, min_tokens=23).field == "min_tokens"
    assert prepare([1] * 10, max_tokens=None, min_tokens=22).requests[0].max_tokens == 22


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_token_ids_outside_of_the_vocabulary_are_refused(name: str) -> None:
    for token_id in (VOCAB, 2**40):
        value: Any = {token_id: 1.0} if name == "logit_bias" else [3, token_id]
        error = refusal(**{name: value})
        assert error.field == name
        assert str(token_id) in str(error)
    last: Any = {VOCAB - 1: 1.0} if name == "logit_bias" else [VOCAB - 1]
    prepare(**{name: last})


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_logprobs_are_limited(name: str) -> None:
    assert getattr(prepare(**{name: 20}).requests[0].params, name) == 20
    for too_many in (21, -1):
        assert refusal(**{name: too_many}).field == name
    unlimited = processor(max_logprobs=-1)
    assert getattr(prepare("a", unlimited, **{name: -1}).requests[0].params, name) == VOCAB
    assert refusal("a", unlimited, **{name: VOCAB + 1}).field == name
    assert getattr(prepare("a", processor(max_logprobs=1000), **{name: -1}).requests[0].params, name) == VOCAB


def test_choices_that_leave_no_token_are_refused() -> None:
    the = tiny.load("byte_level").encode("a")
    assert len(the) == 1
    assert refusal(allowed_token_ids=the, bad_words=["a"]).field == "allowed_token_ids"
    assert refusal(allowed_token_ids=[7], stop_token_ids=[7], min_tokens=1).field == "allowed_token_ids"
    prepare(allowed_token_ids=[7], stop_token_ids=[7])
    prepare(allowed_token_ids=[7, 8], stop_token_ids=[7], min_tokens=1)


@pytest.mark.parametrize("salt", ["", 5, "x" * 257, b"x", ["x"], "\ud800"])
def test_cache_salts_that_are_not_short_texts_are_refused(salt: Any) -> None:
    for prompt, argument in (({"prompt": "a", "cache_salt": salt}, None), ("a", salt)):
        with pytest.raises(InvalidRequest) as caught:
            processor().process("r", prompt, SamplingParams(), cache_salt=argument)
        assert caught.value.field == "cache_salt"


def test_the_salt_of_the_prompt_wins() -> None:
    inputs = processor()
    assert inputs.process("r", "a", SamplingParams(), cache_salt="x").requests[0].cache_salt == "x"
    prompt = {"prompt": "a", "cache_salt": "y"}
    assert inputs.process("r", prompt, SamplingParams(), cache_salt="x").requests[0].cache_salt == "y"


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1, 1.5, True, "1", None])
def test_priorities_are_32_bit_integers(priority: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        processor().process("r", "a", SamplingParams(), priority=priority)
    assert caught.value.field == "priority"
    assert processor().process("r", "a", SamplingParams(), priority=-5).requests[0].priority == -5


def test_a_request_shares_no_list_with_its_caller_or_its_outputs() -> None:
    ids = [5, 6, 7]
    for prompt in (ids, {"prompt_token_ids": ids}):
        prepared = prepare(prompt)
        prepared.prompt_token_ids.append(8)
        assert prepared.requests[0].prompt_token_ids == [5, 6, 7]
        prepared = prepare(prompt)
        ids.append(9)
        assert prepared.prompt_token_ids == prepared.requests[0].prompt_token_ids == [5, 6, 7]
        ids.pop()


def test_a_salt_and_a_priority_of_a_subclass_can_be_sent_to_the_core() -> None:
    class Text(str):
        pass

    class Number(int):
        pass

    prepared = processor().process("r", "x", SamplingParams(), priority=Number(3), cache_salt=Text("tenant"))
    (wired,) = msgspec.msgpack.decode(msgspec.msgpack.encode(prepared.requests), type=list[EngineRequest])
    assert (wired.priority, wired.cache_salt) == (3, "tenant")


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        processor().process("r", "a", {"temperature": 1})  # type: ignore[arg-type]
    assert caught.value.field == "sampling_params"


def test_each_completion_gets_a_seed_of_its_own_that_depends_on_the_request_alone() -> None:
    seeds = [request.seed for request in prepare(seed=7, n=4).requests]
    assert len(set(seeds)) == 4
    assert seeds == [request.seed for request in prepare("other", seed=7, n=4).requests]
    assert seeds[0] == prepare(seed=7, n=1).requests[0].seed
    assert not set(seeds) & {request.seed for request in prepare(seed=8, n=4).requests}
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        assert all(0 <= child_seed(seed, i) < 2**63 for i in range(5))


def test_requests_without_a_seed_differ() -> None:
    assert len({request.seed for request in prepare(n=8).requests}) == 8


def test_the_ids_of_the_core_are_unique_and_ours() -> None:
    inputs = processor()
    ids = [
        request.request_id for _ in range(3) for request in inputs.process("mine", "a", SamplingParams(n=3)).requests
    ]
    assert len(set(ids)) == 9
    assert not any("mine" in request_id for request_id in ids)


def test_end_tokens_come_from_the_model_and_the_tokenizer() -> None:
    eos = tiny.load("byte_level").eos_token_id
    inputs = processor(eos=(3, 5))
    request = prepare("a", inputs, stop_token_ids=[9, 3]).requests[0]
    assert request.stop_token_ids == [9, 3, 5, eos]
    assert request.eos_token_ids == [3, 5, eos]
    ignoring = prepare("a", inputs, stop_token_ids=[9, 3], ignore_eos=True).requests[0]
    assert (ignoring.stop_token_ids, ignoring.eos_token_ids) == ([9, 3], [])
    outside = prepare("a", processor(eos=(VOCAB,))).requests[0]
    assert outside.eos_token_ids == [eos]


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
def test_bad_words_are_spelled_in_every_way_the_tokenizer_can(kind: str) -> None:
    inputs = processor(kind=kind)
    tokenizer = tiny.load(kind)
    sequences = prepare("a", inputs, bad_words=["cat"]).requests[0].bad_words_token_ids
    for text in ("cat", "a cat", "(cat)", "\ncat"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        found = [s for s in sequences if any(ids[i : i + len(s)] == s for i in range(len(ids)))]
        assert found, (text, sequences)


@pytest.mark.parametrize("word", [" ", "\n", "\ud800"])
def test_bad_words_that_are_blank_or_no_text_are_refused(word: str) -> None:
    assert refusal(bad_words=[word]).field == "bad_words"


def test_the_core_gets_no_text_and_prompt_logprobs_are_computed_once() -> None:
    requests = prepare(n=3, stop=["\ud800x"], bad_words=["cat"], prompt_logprobs=2, logprobs=1).requests
    assert [request.params.n for request in requests] == [1, 1, 1]
    assert [request.params.prompt_logprobs for request in requests] == [2, None, None]
    assert all(request.params.stop is None and request.params.bad_words is None for request in requests)
    for request in requests:  # what is on its way can always be encoded
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=EngineRequest) == request


def test_without_a_tokenizer_only_ids_are_taken() -> None:
    inputs = processor(kind=None, eos=(3,))
    assert prepare([1, 2], inputs).requests[0].eos_token_ids == [3]
    assert refusal("text", inputs).field == "prompt"
    assert refusal([1], inputs, stop=["x"]).field == "stop"
    assert refusal([1], inputs, bad_words=["x"]).field == "bad_words"


def test_arrival_is_told_on_both_clocks() -> None:
    prepared = prepare()
    assert abs(prepared.arrival_time - time.time()) < 5
    assert abs(prepared.queued_ts - time.monotonic()) < 5
    assert prepared.requests[0].arrival_time == prepared.queued_ts


def test_long_texts_are_recognised_whatever_form_they_have() -> None:
    inputs = processor()
    assert inputs.chars_to_tokenize("a" * 11) == inputs.chars_to_tokenize({"prompt": "a" * 11}) == 11
    assert inputs.chars_to_tokenize({"prompt_embeds": b""}) > LONG_TEXT_CHARS
    for short in ("a", [1] * 11, {"prompt": "a" * 11, "prompt_token_ids": [1]}, {"prompt": 5}, None, 5):
        assert inputs.chars_to_tokenize(short) < 2  # type: ignore[arg-type]


def test_parameters_survive_the_way_to_the_core() -> None:
    given = {"temperature": 0.5, "logit_bias": {3: 1.5}, "allowed_token_ids": [1, 2], "min_tokens": 3, "top_k": 7}
    core = prepare(**given).requests[0].params
    assert {name: getattr(core, name) for name in given} == given


def test_a_limit_that_must_fit_is_refused_with_the_numbers_where_there_is_no_room() -> None:
    engine = processor()
    room = engine.max_model_len - 1
    fitting = engine.process("r", [1], SamplingParams(max_tokens=room, max_tokens_must_fit=True))
    assert fitting.requests[0].max_tokens == room
    assert fitting.requests[0].params.max_tokens_must_fit is False
    with pytest.raises(InvalidRequest, match=f"{room + 1}.* 1 tokens .*{room} of {room + 1}") as error:
        engine.process("r", [1], SamplingParams(max_tokens=room + 1, max_tokens_must_fit=True))
    assert error.value.field == "max_tokens"
    assert engine.process("r", [1], SamplingParams(max_tokens=room + 1)).requests[0].max_tokens == room
