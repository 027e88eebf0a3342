"""``SamplingParams``: what it takes and what it refuses, field by field."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_engine.errors import InvalidRequest
from vllm_engine.params import MAX_N, MAX_STOP_STRING_LENGTH, MAX_STOP_STRINGS, OutputKind, SamplingParams

NO_NUMBERS = [None, "1", [1], {}, True, object()]
NOT_FINITE = [math.nan, math.inf, -math.inf, 10**400, -(10**5000)]


def nested(depth: int) -> dict[str, Any]:
    """A dict with so many levels below it."""
    result: dict[str, Any] = {}
    for _ in range(depth):
        result = {"a": result}
    return result


def doubled(times: int) -> dict[str, Any]:
    """Small in memory, and of 2**times values."""
    values: list[Any] = []
    for _ in range(times):
        values = [values, values]
    return {"a": values}


GOOD: dict[str, list[Any]] = {
    "n": [1, MAX_N],
    "temperature": [0, 0.0, 1e-9, 2.0, 100, 3e38],
    "top_p": [1e-9, 0.5, 1, 1.0],
    "top_k": [-1, 0, 1, 10**6],
    "min_p": [0, 0.5, 1],
    "repetition_penalty": [1e-20, 0.01, 1, 2.5, 1e20],
    "presence_penalty": [-2, 0, 2.0],
    "frequency_penalty": [-2, 0, 2.0],
    "seed": [None, 0, -(2**63), 2**63 - 1],
    "stop": [None, [], "x", ["x", "y"]],
    "stop_token_ids": [None, [], [0, 5]],
    "bad_words": [None, [], ["x"]],
    "min_tokens": [0, 16],
    "max_tokens": [None, 1, 10**9],
    "logprobs": [None, -1, 0, 20],
    "prompt_logprobs": [None, -1, 0, 20],
    "logit_bias": [None, {}, {5: -100, 6: 100.0}],
    "allowed_token_ids": [None, [0]],
    "truncate_prompt_tokens": [None, -1, 1],
    "output_kind": list(OutputKind),
    "extra_args": [
        None,
        {},
        {"a": 1, "b": -0.5, "é": "猫", "d": None, "e": [True, [], {"f": -(2**63)}]},
        {"x" * 65533: 0},
        {"x": [0] * 65532},
        nested(16),
    ],
    **{
        name: [True, False]
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "max_tokens_must_fit",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "detokenize",
        )
    },
}

BAD: dict[str, list[Any]] = {
    "n": [0, -1, MAX_N + 1, 10**5000, 1.0, *NO_NUMBERS],
    "temperature": [-0.1, 1e39, 10**40, *NOT_FINITE, *NO_NUMBERS],
    "top_p": [0, -1, 1.01, *NOT_FINITE, *NO_NUMBERS],
    "top_k": [-2, 2**31, 1.5, math.nan, *NO_NUMBERS],
    "min_p": [-0.1, 1.1, *NOT_FINITE, *NO_NUMBERS],
    "repetition_penalty": [0, -1, 1e-300, 1e300, *NOT_FINITE, *NO_NUMBERS],
    "presence_penalty": [-2.1, 2.1, *NOT_FINITE, *NO_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, *NOT_FINITE, *NO_NUMBERS],
    "seed": [2**63, -(2**63) - 1, 10**5000, 1.0, "1", True],
    "stop": [5, [5], [""], "", ["x", None], ["x"] * (MAX_STOP_STRINGS + 1), ["x" * (MAX_STOP_STRING_LENGTH + 1)]],
    "stop_token_ids": [5, [-1], ["5"], [1.0], [True], list(range(5000))],
    "bad_words": ["x", [5], [""], ["x"] * 2000],
    "min_tokens": [-1, 17, 2**31, 1.0, *NO_NUMBERS],
    "max_tokens": [0, -1, 2**31, 1.5, "1", True],
    "logprobs": [-2, 2**31, 1.0, "1", True],
    "prompt_logprobs": [-2, 1.0, "1", True],
    "logit_bias": [
        [],
        {"5": 1},
        {-1: 1},
        {5: 101},
        {5: 10**400},
        {10**5000: "x"},
        {5: math.nan},
        {5: "x"},
        {True: 1},
        dict.fromkeys(range(5000), 1),
    ],
    "allowed_token_ids": [[], [-1], ["x"], 5],
    "truncate_prompt_tokens": [0, -2, 1.0, "1", True],
    "output_kind": [None, 0, "DELTA"],
    "extra_args": [
        [],
        "x",
        5,
        {5: 1},
        {"a": {None: 1}},
        {"a": (1,)},
        {"a": {1}},
        {"a": b"x"},
        {"a": object()},
        {"a": 2**63},
        {"a": 10**5000},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": "\ud800"},
        {"\ud800": 1},
        {"x" * 65534: 0},
        {"x": [0] * 65533},
        {"x": "é" * 65533},
        nested(17),
        nested(5000),
        doubled(60),
    ],
    "include_stop_str_in_output": [None, 1, "true"],
    "ignore_eos": [None, 1, "true"],
    "max_tokens_must_fit": [None, 1, "true"],
    "skip_special_tokens": [None, 1, "true"],
    "spaces_between_special_tokens": [None, 1, "true"],
    "detokenize": [None, 1, "true"],
}


def kind(value: Any) -> str:
    """Name of a case: the field, or the type of its value."""
    return value if value in SamplingParams.__struct_fields__ else type(value).__name__


def test_every_field_is_in_both_tables() -> None:
    assert set(GOOD) == set(BAD) == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values], ids=kind
)
def test_values_within_bounds_are_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=kind
)
def test_values_out_of_bounds_are_refused_with_the_name_of_the_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{name: value})
    assert caught.value.field == name
    assert name in str(caught.value)
    assert "0x" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_equal_spellings_become_one() -> None:
    assert SamplingParams(stop="x").stop == ["x"]
    assert SamplingParams(stop="x").stop_strings == ["x"]
    assert SamplingParams().stop_strings == []
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0)


def test_stop_strings_need_text() -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(stop=["x"], detokenize=False)
    assert caught.value.field == "stop"


def test_a_temperature_near_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-6).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_a_changed_copy_is_checked_like_a_new_one_and_leaves_the_first_alone() -> None:
    params = SamplingParams(temperature=0.5)
    assert params.replace(n=2) == SamplingParams(temperature=0.5, n=2)
    assert params.n == 1
    with pytest.raises(InvalidRequest):
        params.replace(n=0)
    with pytest.raises(AttributeError):
        params.n = 2  # type: ignore[misc]


@given(
    st.builds(
        SamplingParams,
        n=st.integers(1, MAX_N),
        temperature=st.floats(0, 10),
        top_p=st.floats(0.001, 1),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop=st.none() | st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=3),
        logit_bias=st.none() | st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=3),
        output_kind=st.sampled_from(OutputKind),
    )
)
def test_parameters_come_through_the_wire_unchanged(params: SamplingParams) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


class _Int(int):
    pass


class _Name(str):
    def __str__(self) -> str:
        return "something else"


def test_subclasses_of_pythons_types_come_through_the_wire_as_their_values() -> None:
    params = SamplingParams(
        temperature=np.float64(0.5),
        top_p=2**0,
        max_tokens=_Int(3),
        stop=[_Name("x")],
        logit_bias={_Int(5): np.float64(1.5)},
        stop_token_ids=[_Int(7)],
    )
    wired = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert wired == params
    assert (wired.temperature, wired.max_tokens, wired.stop) == (0.5, 3, ["x"])
    assert (wired.logit_bias, wired.stop_token_ids) == ({5: 1.5}, [7])


def test_what_the_caller_does_to_a_list_later_changes_no_parameters() -> None:
    stops, bias = [5], {5: 1.0}
    params = SamplingParams(stop_token_ids=stops, logit_bias=bias)
    stops.append(-1)
    bias[-1] = 10**6
    assert (params.stop_token_ids, params.logit_bias) == ([5], {5: 1.0})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError):
        SamplingParams(temprature=1)  # type: ignore[call-arg]
