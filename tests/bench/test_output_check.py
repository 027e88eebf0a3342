"""The server's count of its output against what was asked for, and against a tokenizer."""

import pytest

from vllm_bench.measure.output_check import output_check
from vllm_bench.records import RequestRecord


def record(words: int, usage: int | None, asked: int | None) -> RequestRecord:
    return RequestRecord(0.0, 0.0, texts=["word "] * words, completion_tokens=usage, output_len=asked)


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("usage", "asked", "fixed", "mismatches"),
    [(10, 10, True, 0), (9, 10, False, 0), (9, 10, True, 1), (11, 10, False, 1), (None, 10, False, None)],
)
def test_a_count_other_than_what_was_asked_for_is_a_mismatch(usage, asked, fixed, mismatches):
    found = output_check([record(10, usage, asked)], None, fixed_length=fixed)
    assert found["output_token_mismatches"] == mismatches
    assert found["output_tokens_retokenized"] is None
    assert (found["output_token_mismatch_example"] is None) == (not mismatches)


@pytest.mark.parametrize(("usage", "mismatches"), [(100, 0), (101, 0), (112, 0), (113, 1), (87, 1), (50, 1)])
def test_with_a_tokenizer_a_count_must_be_near_that_of_the_text(usage: int, mismatches: int):
    found = output_check([record(100, usage, None)], words)
    assert (found["output_tokens_retokenized"], found["output_token_mismatches"]) == (100, mismatches)
    if mismatches:
        assert found["output_token_mismatch_example"] == f"the server counts {usage} tokens, the tokenizer 100"


def test_a_request_is_one_mismatch_whatever_is_wrong_with_it():
    found = output_check([record(5, 50, 20), record(5, 5, 20)], words)
    assert found["output_token_mismatches"] == 1


def test_without_anything_to_compare_nothing_is_said():
    assert output_check([], None)["output_token_mismatches"] is None
    assert output_check([record(3, 3, None)], None)["output_token_mismatches"] is None
