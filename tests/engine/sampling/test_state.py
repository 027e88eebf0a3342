import pytest

from tests.engine.sampling.requests import request, state
from vllm_engine.sampling.state import BadWords, SamplingState, TokenCounts, check_token_ids


def counted(counts: TokenCounts) -> dict[int, int]:
    return dict(counts.entries.tolist())


def test_a_plain_request_keeps_no_history():
    plain = state(output=[4])
    plain.append(5)
    assert plain.num_outputs == 2
    assert plain.counts is None
    assert plain.bad_words is None


def test_a_repetition_penalty_counts_prompt_and_output():
    penalised = state([7, 8, 7], [8, 9], repetition_penalty=1.1)
    penalised.append(9)
    assert counted(penalised.counts) == {7: 0, 8: 1, 9: 2}


def test_presence_and_frequency_penalties_count_the_output_only():
    penalised = state([7, 8, 7], [8], frequency_penalty=0.5)
    penalised.append(7)
    assert counted(penalised.counts) == {8: 1, 7: 1}


def test_counts_grow_beyond_their_first_arrays():
    counts = TokenCounts([], [])
    for token in range(1000):
        counts.add(token)
        counts.add(token // 2)
    expected = {token: 1 + 2 * (token < 500) for token in range(1000)}
    assert counted(counts) == expected


def test_a_state_made_again_after_a_preemption_equals_the_one_that_went_on():
    fields = {"repetition_penalty": 1.2, "bad_words": [[5, 6, 7], [9]]}
    went_on = state([1, 2], **fields)
    for token in (5, 6, 5):
        went_on.append(token)
    again = state([1, 2], [5, 6, 5], **fields)
    assert again.num_outputs == went_on.num_outputs == 3
    assert counted(again.counts) == counted(went_on.counts)
    for token in (6, 8):
        assert list(again.bad_words.forbidden()) == list(went_on.bad_words.forbidden())
        again.append(token)
        went_on.append(token)


def test_a_state_does_not_hold_on_to_the_list_it_was_made_from():
    asked = request([1, 2], repetition_penalty=1.2, bad_words=[[2, 3, 4]])
    token_ids = [1, 2, 3]
    made = SamplingState(asked, token_ids)
    token_ids[:] = [0, 0, 0]
    assert counted(made.counts) == {1: 0, 2: 0, 3: 1}
    assert list(made.bad_words.forbidden()) == [4]


def test_token_ids_without_the_prompt_are_refused():
    with pytest.raises(ValueError, match="token_ids must hold the prompt"):
        SamplingState(request([1, 2, 3]), [1, 2])


def test_the_last_token_of_a_bad_word_is_forbidden_only_after_the_others():
    words = BadWords([[9], [1, 2], [3, 1, 4]], [])
    assert list(words.forbidden()) == [9]
    words.append(1)
    assert list(words.forbidden()) == [9, 2]
    words.append(3)
    assert list(words.forbidden()) == [9]
    words.append(1)
    assert sorted(words.forbidden()) == [2, 4, 9]


def test_a_bad_word_may_begin_in_the_prompt():
    assert list(BadWords([[1, 2, 3]], [7, 1, 2]).forbidden()) == [3]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"allowed_token_ids": [1, 10]}, "allowed_token_ids"),
        ({"logit_bias": {10: 1.0}}, "logit_bias"),
        ({"stop_token_ids": [10]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"bad_words": [[1], [2, 10]]}, "bad_words"),
        ({"bad_words": [[1], []]}, "bad_words"),
        ({"prompt": [1, 10], "repetition_penalty": 1.5}, "prompt"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_by_name(fields, name):
    check_token_ids(request(**{field: value for field, value in fields.items() if field == "repetition_penalty"}), 10)
    with pytest.raises(ValueError, match=f"^{name} has a "):
        check_token_ids(request(**fields), 10)
