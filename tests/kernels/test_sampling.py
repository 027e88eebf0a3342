import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vllm_kernels.backend import FACES, use_face
from vllm_kernels.ops import sampling


def draw(
    logits: torch.Tensor,
    uniforms: torch.Tensor | list[float],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """``sample`` with the same parameters in every row; a single row is drawn from once per uniform."""
    uniforms = torch.as_tensor(uniforms, dtype=torch.float64)
    logits = logits.expand(len(uniforms), -1).contiguous() if logits.ndim == 1 else logits
    rows = len(logits)
    return sampling.sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.full((rows,), min_p, dtype=torch.float64),
        uniforms,
    )


def kept_by_transformers(logits: torch.Tensor, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> torch.Tensor:
    """Probabilities [V] after the filters of the transformers library in our order."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores[0].double().softmax(0)


def rough(*shape: int) -> torch.Tensor:
    """Logits with many equal values, as bf16 models have."""
    return (torch.randn(*shape) * 3).mul(4).round().div(4)


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"top_p": 0.999},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.9, "temperature": 0.6},
    {"top_k": 20, "top_p": 0.5, "min_p": 0.05, "temperature": 1.5},
    {"top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [11, 1000])
def test_draws_are_distributed_as_the_filtered_softmax_of_transformers(filters, vocab_size):
    torch.manual_seed(0)
    logits = torch.randn(vocab_size) * 2
    expected = kept_by_transformers(logits, **filters)
    num_draws = 4_000
    # Evenly spread numbers: counts are exact to one or two draws, which no sample of random ones would be.
    uniforms = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    counts = torch.bincount(draw(logits, uniforms, **filters), minlength=vocab_size)
    assert (counts - expected * num_draws).abs().max() <= 1.5
    assert not counts[expected == 0].any()


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [11, 1000])
def test_filtered_logits_are_those_of_transformers(filters, vocab_size):
    torch.manual_seed(0)
    logits = torch.randn(3, vocab_size) * 2
    arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    filtered = sampling.filter_logits(
        logits,
        *(torch.full((3,), arguments[name]) for name in ("temperature", "top_k", "top_p", "min_p")),
    )
    expected = torch.stack([kept_by_transformers(row, **filters) for row in logits])
    torch.testing.assert_close(filtered.double().softmax(1), expected, rtol=1e-5, atol=0)
    kept = filtered > -math.inf
    torch.testing.assert_close(filtered[kept], (logits / arguments["temperature"])[kept])


def test_rows_that_nothing_filters_keep_every_logit_however_unlikely():
    logits = torch.tensor([[0.0, -500.0, -math.inf, 3.0]] * 4)
    logits[3, 1] = math.nan
    filtered = sampling.filter_logits(
        logits,
        torch.tensor([0.5, 0.0, 1.0, 1.0]),
        torch.tensor([0, 1, 3, 0]),
        torch.tensor([1.0, 0.1, 1.0, 0.5]),
        torch.tensor([0.0, 0.9, 0.0, 0.5]),
    )
    assert filtered[0].tolist() == [0.0, -1000.0, -math.inf, 6.0]
    assert torch.equal(filtered[1], logits[1])  # temperature 0: nothing is drawn, so nothing is filtered
    assert torch.equal(filtered[2], logits[2])
    torch.testing.assert_close(filtered[3], logits[3], equal_nan=True)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_random_draws_pass_a_chi_square_test(filters):
    torch.manual_seed(0)
    logits = torch.randn(40)
    expected = kept_by_transformers(logits, **filters).numpy() * 20_000
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    counts = np.bincount(draw(logits, uniforms, **filters).numpy(), minlength=40)
    kept = expected > 0
    assert not counts[~kept].any()
    statistic, freedom = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum(), kept.sum() - 1
    # Wilson and Hilferty's normal approximation of the chi-square distribution; 4 deviations are passed once in 30000.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3 if freedom else 1e-9
    assert statistic <= limit


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 6),
    vocab_size=st.sampled_from([1, 2, 7, 127, 128, 129, 300, 600]),
    seed=st.integers(0, 2**20),
    ties=st.booleans(),
)
def test_any_mix_of_rows_equals_the_reference(rows, vocab_size, seed, ties):
    torch.manual_seed(seed)
    logits = rough(rows, vocab_size) if ties else torch.randn(rows, vocab_size) * 3
    masked = torch.rand(rows, 1) < 0.3
    logits.masked_fill_(masked & (torch.rand(rows, vocab_size) < 0.5), float("-inf"))

    def some(values: torch.Tensor, neutral: float) -> torch.Tensor:
        return torch.where(torch.rand(rows) < 0.5, values, torch.tensor(neutral, dtype=values.dtype))

    arguments = (
        logits,
        some(torch.rand(rows) * 3 + 0.1, 0.0),
        some(torch.randint(1, vocab_size + 2, (rows,)), 0),
        some(torch.rand(rows, dtype=torch.float64) * 0.98 + 0.01, 1.0),
        some(torch.rand(rows, dtype=torch.float64), 0.0),
        torch.rand(rows, dtype=torch.float64),
    )
    before = logits.clone()
    result = sampling.sample(*arguments)
    assert torch.equal(logits, before)
    filtered = sampling.filter_logits(*arguments[:-1])
    assert torch.equal(logits, before)
    with use_face("reference"):
        assert torch.equal(result, sampling.sample(*arguments))
        torch.testing.assert_close(filtered, sampling.filter_logits(*arguments[:-1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}], ids=str)
def test_extreme_uniforms_never_draw_an_impossible_token(face, filters):
    logits = torch.full((700,), float("-inf"))
    logits[[5, 130, 650]] = torch.tensor([1.0, 1.0, 1.0])
    with use_face(face):
        first, last = draw(logits, [0.0, np.nextafter(1.0, 0.0)], **filters).tolist()
    assert first == 5
    assert last == (130 if filters.get("top_p") else 650)


@pytest.mark.parametrize("face", FACES)
def test_greedy_takes_the_lowest_id_of_equals(face):
    logits = torch.zeros(3, 500)
    logits[0, [499, 300, 301]] = 2.0
    logits[2, 499] = 1e-6
    with use_face(face):
        assert sampling.greedy(logits).tolist() == [300, 0, 499]
        assert draw(logits, [0.9, 0.9, 0.9], temperature=0.0).tolist() == [300, 0, 499]
        assert draw(logits, [0.9, 0.9, 0.9], top_k=1).tolist() == [300, 0, 499]


@pytest.mark.parametrize("face", FACES)
def test_of_equally_likely_tokens_the_lowest_ids_are_kept(face):
    uniforms = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    with use_face(face):
        assert set(draw(torch.zeros(300), uniforms, top_k=4).tolist()) == {0, 1, 2, 3}
        assert set(draw(torch.zeros(300), uniforms, top_p=0.01).tolist()) == {0, 1, 2}
        assert set(draw(torch.zeros(10), uniforms, min_p=1.0).tolist()) == set(range(10))


@pytest.mark.parametrize("face", FACES)
def test_rows_that_cannot_be_sampled_give_minus_one_and_leave_the_others_alone(face):
    torch.manual_seed(0)
    logits = torch.randn(6, 200)
    logits[1, 77] = float("nan")
    logits[2] = float("nan")
    logits[3] = float("-inf")
    logits[4, 3] = float("inf")
    with use_face(face):
        for filters in FILTERS:
            result = draw(logits, [0.5] * 6, **filters).tolist()
            assert result[1:5] == [-1] * 4
            assert result[::5] == draw(logits[::5].contiguous(), [0.5] * 2, **filters).tolist()
        assert sampling.greedy(logits).tolist()[1:5] == [-1] * 4


def test_a_row_draws_the_same_in_any_batch(num_threads):
    torch.manual_seed(0)
    rows, vocab_size = 40, 50_000
    logits = torch.randn(rows, vocab_size) * 2
    arguments = [
        logits,
        torch.rand(rows) + 0.2,
        torch.where(torch.rand(rows) < 0.5, torch.randint(1, 100, (rows,)), 0),
        torch.where(torch.rand(rows) < 0.5, torch.rand(rows), 1.0),
        torch.where(torch.rand(rows) < 0.5, torch.rand(rows) * 0.1, 0.0),
        torch.rand(rows, dtype=torch.float64),
    ]
    together = sampling.sample(*arguments)
    for row in range(rows):
        assert sampling.sample(*(argument[row : row + 1] for argument in arguments)) == together[row]


def test_the_tail_of_a_large_vocabulary_can_be_drawn():
    # 150000 equal tokens: each has a share of 6.7e-6, and the draw must find the right one to the last.
    size = 150_000
    wanted = torch.tensor([0, 1, 75_000, 149_998, 149_999])
    drawn = draw(torch.zeros(size), (wanted.double() + 0.5) / size)
    assert (drawn - wanted).abs().max() <= 1


@pytest.mark.parametrize("face", FACES)
def test_repetition_penalty_equals_the_one_of_transformers(face):
    torch.manual_seed(0)
    logits, prompt = torch.randn(2, 50), torch.randint(0, 50, (2, 12))
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(prompt, logits.clone())
    distinct = [sorted(set(row.tolist())) for row in prompt]
    offsets = torch.tensor([0, len(distinct[0]), len(distinct[0]) + len(distinct[1])])
    counts = torch.tensor([(token, 0) for row in distinct for token in row], dtype=torch.int32)
    neutral = torch.zeros(2)
    with use_face(face):
        sampling.apply_penalties(logits, torch.arange(2), offsets, counts, torch.full((2,), 1.3), neutral, neutral)
    assert torch.allclose(logits, theirs, atol=1e-6)


@pytest.mark.parametrize("face", FACES)
def test_presence_and_frequency_count_the_output_only(face):
    # The formula: logit - count * frequency - (count > 0) * presence.
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    rows, offsets = torch.tensor([2, 0]), torch.tensor([0, 3, 4])
    counts = torch.tensor([[0, 0], [1, 1], [3, 3], [2, 2]], dtype=torch.int32)
    with use_face(face):
        sampling.apply_penalties(
            logits, rows, offsets, counts, torch.ones(2), torch.tensor([0.5, 0.0]), torch.full((2,), 0.25)
        )
    assert logits.tolist() == [[1.0, 2.0, 2.5, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.25, 3.0, 2.75]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 4), vocab_size=st.integers(1, 40))
def test_sparse_changes_equal_the_reference(seed, rows, vocab_size):
    torch.manual_seed(seed)
    logits = torch.randn(rows, vocab_size)
    row_ids, token_ids = (torch.rand(rows, vocab_size) < 0.3).nonzero().T.contiguous()
    count = len(row_ids)
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(row_ids, minlength=rows).cumsum(0)
    counts = torch.stack([token_ids, torch.randint(0, 3, (count,))], dim=1).int()
    penalties = (torch.rand(rows) + 0.5, torch.randn(rows), torch.randn(rows))
    for name, arguments in (
        ("apply_penalties", (torch.arange(rows), offsets, counts, *penalties)),
        ("apply_bias", (row_ids, token_ids, torch.randn(count))),
        ("mask_tokens", (row_ids, token_ids)),
        ("keep_tokens", (row_ids, token_ids)),
    ):
        ours, theirs = logits.clone(), logits.clone()
        getattr(sampling, name)(ours, *arguments)
        with use_face("reference"):
            getattr(sampling, name)(theirs, *arguments)
        assert torch.allclose(ours, theirs, atol=1e-6), name


@pytest.mark.parametrize("face", FACES)
def test_keep_tokens_leaves_rows_without_entries_alone(face):
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    with use_face(face):
        sampling.keep_tokens(logits, torch.tensor([1, 1, 1]), torch.tensor([2, 0, 2]))
    assert logits.tolist() == [[1.0, 2.0, 3.0], [1.0, -math.inf, 3.0]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(0, 4),
    vocab_size=st.sampled_from([1, 5, 128, 700, 3000]),
    k=st.integers(0, 20),
    ties=st.booleans(),
)
def test_log_probabilities_equal_the_reference(seed, rows, vocab_size, k, ties):
    torch.manual_seed(seed)
    logits = rough(rows, vocab_size) if ties else torch.randn(rows, vocab_size)
    token_ids, k = torch.randint(0, vocab_size, (rows,)), min(k, vocab_size)
    ids, logprobs, ranks = sampling.top_logprobs(logits, token_ids, k)
    with use_face("reference"):
        expected_ids, expected_logprobs, expected_ranks = sampling.top_logprobs(logits, token_ids, k)
    assert torch.equal(ids, expected_ids)
    assert torch.allclose(logprobs, expected_logprobs, atol=1e-5)
    assert torch.equal(ranks, expected_ranks)


@pytest.mark.parametrize("face", FACES)
def test_the_whole_vocabulary_can_be_asked_for(face):
    logits = torch.tensor([[0.0, 2.0, -0.0, 1.0, float("-inf")]])
    with use_face(face):
        ids, logprobs, ranks = sampling.top_logprobs(logits, torch.tensor([2]), 5)
    assert ids.tolist() == [[2, 1, 3, 0, 2, 4]]
    assert torch.allclose(logprobs[0], torch.log_softmax(logits[0], 0)[ids[0]])
    assert ranks.tolist() == [3]


def test_log_probabilities_of_a_row_are_the_same_bits_in_any_batch(num_threads):
    torch.manual_seed(0)
    logits, tokens = torch.randn(30, 40_000), torch.randint(0, 40_000, (30,))
    ids, logprobs, ranks = sampling.top_logprobs(logits, tokens, 5)
    for row in range(30):
        one = sampling.top_logprobs(logits[row : row + 1], tokens[row : row + 1], 5)
        assert torch.equal(one[0][0], ids[row])
        assert torch.equal(one[1][0], logprobs[row])
        assert one[2][0] == ranks[row]


def test_wrong_arguments_are_named():
    logits, ids, vector = torch.zeros(2, 4), torch.tensor([0, 1]), torch.ones(2)
    uniforms, no_counts = torch.zeros(2, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"logits must be torch.float32"):
        sampling.greedy(logits.bfloat16())
    with pytest.raises(ValueError, match="logits must have shape"):
        sampling.greedy(logits[0])
    with pytest.raises(ValueError, match="logits must have at least one column"):
        sampling.greedy(logits[:, :0])
    with pytest.raises(ValueError, match="temperature must have shape"):
        sampling.sample(logits, vector[:1], ids, vector, vector, uniforms)
    with pytest.raises(ValueError, match=r"top_k must be torch.int64"):
        sampling.sample(logits, vector, vector, vector, vector, uniforms)
    with pytest.raises(ValueError, match="top_p must be floating point"):
        sampling.sample(logits, vector, ids, ids, vector, uniforms)
    with pytest.raises(ValueError, match=r"uniforms must be torch.float64"):
        sampling.sample(logits, vector, ids, vector, vector, vector)
    with pytest.raises(ValueError, match=r"k must be in \[0, 4\], got 5"):
        sampling.top_logprobs(logits, ids, 5)
    with pytest.raises(ValueError, match="token_ids must have shape"):
        sampling.mask_tokens(logits, ids, ids[:1])
    with pytest.raises(ValueError, match="bias must have shape"):
        sampling.apply_bias(logits, ids, ids, vector[:1])
    with pytest.raises(ValueError, match="presence must have shape"):
        sampling.apply_penalties(logits, ids, torch.tensor([0, 0, 0]), no_counts, vector, vector[:1], vector)
    with pytest.raises(ValueError, match="offsets must go from 0 to 0, got 0 to 1"):
        sampling.apply_penalties(logits, ids, torch.tensor([0, 0, 1]), no_counts, vector, vector, vector)
    with pytest.raises(ValueError, match=r"token_counts must be torch.int32"):
        sampling.apply_penalties(logits, ids, torch.tensor([0, 0, 0]), no_counts.long(), vector, vector, vector)
