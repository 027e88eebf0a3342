"""The native sampling kernels at every level of the machine: against the reference, and against float64 where a whole
vocabulary would take the reference too long."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from vllm_kernels.backend import use_face
from vllm_kernels.ops import sampling

INF = math.inf
VOCAB = 151_936


def arguments(rows: list[tuple[float, int, float, float]]) -> tuple[torch.Tensor, ...]:
    """``(temperature, top_k, top_p, min_p)`` of each row as vectors."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return (
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int64),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p, dtype=torch.float64),
    )


def rows_of_every_kind(size: int, generator: torch.Generator) -> torch.Tensor:
    """``[10, size]``: logits of a model, and what masks, biases and broken models make of them."""
    logits = torch.randn(10, size, generator=generator) * 3
    logits[1] = logits[1].mul(4).round().div(4)  # many equals
    logits[2] = 1.5
    logits[3][torch.rand(size, generator=generator) < 0.9] = -INF
    logits[3, size // 2] = 0.0
    logits[4] = -INF
    logits[4, size - 1] = -7.0
    logits[5] *= 1e37
    logits[6, size // 3] = INF
    logits[7, size - 1] = math.nan
    logits[8] = -INF
    logits[9] = torch.where(torch.rand(size, generator=generator) < 0.5, 0.0, -0.0)
    return logits


@cache
def every_case(size: int) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]]:
    """Arguments of ``sample`` for every kind of row and filter, with the reference's tokens and filtered logits."""
    logits = rows_of_every_kind(size, torch.Generator().manual_seed(size))
    filters = [
        (0.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.3, 7, 1.0, 0.0),
        (0.7, size - 1, 1.0, 0.0),
        (1.0, size, 1.0, 0.0),
        (1.0, size + 1, 0.9137, 0.0),
        (0.05, 0, 0.7137, 0.0),
        (30.0, 0, 0.3137, 0.0),
        (1.0, 0, 1e-9, 0.0),
        (1.0, 0, 0.9999137, 0.0),
        (1.0, 0, 1.0, 0.0517),
        (1.0, 0, 1.0, 1.0),
        (0.8, 9, 0.6137, 0.0317),
    ]
    cases = []
    with use_face("reference"):
        for each in filters:
            filtered = sampling.filter_logits(logits, *arguments([each] * 10))
            for uniform in (0.0, 0.4137, float(np.nextafter(1.0, 0.0))):
                drawn = (logits, *arguments([each] * 10), torch.full((10,), uniform, dtype=torch.float64))
                cases.append((drawn, sampling.sample(*drawn), filtered))
    return cases


@pytest.mark.parametrize("size", [1, 15, 16, 17, 256, 273])
def test_every_kind_of_row_with_every_filter_equals_the_reference(level, num_threads, size):
    for drawn, tokens, filtered in every_case(size):
        assert torch.equal(sampling.sample(*drawn), tokens)
        ours = sampling.filter_logits(*drawn[:-1])
        # Of tokens that are too unlikely even for fp64 the reference keeps the first, the kernel the largest.
        ours[5] = filtered[5]
        torch.testing.assert_close(ours, filtered, rtol=1e-6, atol=0, equal_nan=True)


def test_the_smallest_temperatures_and_differences_still_order_tokens(level):
    logits = torch.full((4, 40), -1e-40)
    logits[:, 30], logits[:, 20] = 2e-40, 1e-40
    top_two = arguments([(1.0, 2, 1.0, 0.0)] * 2 + [(1e-44, 0, 1.0, 0.0), (1e-30, 0, 0.5, 0.5)])
    assert sampling.greedy(logits).tolist() == [30] * 4
    uniforms = torch.tensor([0.1, 0.9, 0.0, 0.0], dtype=torch.float64)
    assert sampling.sample(logits, *top_two, uniforms).tolist()[:2] == [20, 30]
    logits[:, 30] = 1e-3
    assert sampling.sample(logits, *arguments([(1e-40, 0, 1.0, 0.0)] * 4), uniforms).tolist() == [30] * 4


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_one_bad_logit_is_found_wherever_it_stands(level, bad):
    size = 530
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)).repeat(size, 1)
    logits[torch.arange(size), torch.arange(size)] = bad
    assert sampling.greedy(logits).tolist() == [-1] * size


@pytest.mark.parametrize("top_k", [0, 50, 3000])
@pytest.mark.parametrize("kind", ["flat", "steep", "equal", "sparse", "misleading"])
def test_a_whole_vocabulary_is_cut_and_drawn_from_as_in_double_precision(level, kind, top_k):
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(VOCAB, generator=generator) * (6 if kind == "steep" else 2)
    if kind == "equal":
        row.zero_()
    elif kind == "sparse":
        row[torch.rand(VOCAB, generator=generator) < 0.9999] = -INF
    elif kind == "misleading":  # the sixteen logits of each block at which the kernel looks first are the largest
        block = torch.arange(VOCAB // 256)
        row[(block * 256 + block % 16 * 16)[:, None] + torch.arange(16)] += 4
    uniforms = torch.tensor([0.0, 0.1, 0.5, 0.9, 1 - 1e-12], dtype=torch.float64)
    for temperature, top_p, min_p in ((1.0, 1.0, 0.0), (0.8, 0.9, 0.0), (2.0, 0.99, 0.0), (1.0, 0.5, 1e-4)):
        filters = arguments([(temperature, top_k, top_p, min_p)] * len(uniforms))
        kept = sampling.filter_logits(row[None], *(each[:1] for each in filters))[0] > -INF
        weights = torch.softmax(row.double() / np.float32(temperature), 0)
        # What the earlier filters leave, in order; the nucleus is the beginning of it that first reaches top_p.
        order = torch.sort(row, descending=True, stable=True).indices
        order = order[(weights[order] >= min_p * weights.max()) & (row[order] > -INF)][: top_k or VOCAB]
        running = weights[order].cumsum(0)
        count = int(kept.sum())
        assert torch.equal(kept.nonzero()[:, 0], order[:count].sort().values)
        if top_p < 1:
            assert running[count - 1] >= top_p * running[-1] * (1 - 2e-6)
            assert count == 1 or running[count - 2] < top_p * running[-1] * (1 + 2e-6)
        else:
            assert count == len(order)
        weights = torch.where(kept, weights, 0)
        upto = weights.cumsum(0)
        for token, uniform in zip(
            sampling.sample(row.expand(len(uniforms), -1), *filters, uniforms).tolist(), uniforms.tolist(), strict=True
        ):
            assert kept[token]
            error = 2e-6 * upto[-1]
            assert upto[token] - weights[token] - error <= uniform * upto[-1] <= upto[token] + error


@pytest.mark.parametrize("size", [1, 17, 256, 1000])
@pytest.mark.parametrize("k", [0, 1, 5, 48, 49, 400, 1000])
def test_log_probabilities_equal_the_reference(level, num_threads, size, k):
    logits = rows_of_every_kind(size, torch.Generator().manual_seed(size))[[0, 1, 2, 3, 4, 9]]
    tokens = torch.arange(6) * (size - 1) // 5
    k = min(k, size)
    ids, logprobs, ranks = sampling.top_logprobs(logits, tokens, k)
    with use_face("reference"):
        expected = sampling.top_logprobs(logits, tokens, k)
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(logprobs, expected[1], rtol=1e-6, atol=1e-6)
    assert torch.equal(ranks, expected[2])


def test_log_probabilities_of_a_whole_vocabulary_equal_double_precision(level):
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.log_softmax(logits.double(), 1)
    ids, logprobs, ranks = sampling.top_logprobs(logits, torch.tensor([7, VOCAB - 1]), VOCAB)
    assert torch.equal(ids[:, 1:], torch.sort(logits, descending=True, stable=True).indices)
    torch.testing.assert_close(logprobs.double(), expected.gather(1, ids), rtol=2e-7, atol=1e-6)
    assert ranks.tolist() == [1 + int((row > row[token]).sum()) for row, token in zip(logits, (7, -1), strict=True)]


def test_rows_without_probabilities_have_none_and_stay_inside_the_vocabulary(level):
    logits = rows_of_every_kind(300, torch.Generator().manual_seed(0))[[6, 7, 8]]
    ids, logprobs, _ = sampling.top_logprobs(logits, torch.tensor([0, 1, 2]), 20)
    assert logprobs.isnan().all()
    assert ids.min() >= 0
    assert ids.max() < 300
    assert ids[0, 1] == 100  # infinity is the largest


def test_single_logits_change_as_in_the_reference(level, num_threads):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 900, generator=generator)
    rows, tokens = (torch.rand(9, 900, generator=generator) < 0.2).nonzero().T.contiguous()
    offsets = torch.zeros(10, dtype=torch.int64)
    offsets[1:] = torch.bincount(rows, minlength=9).cumsum(0)
    counts = torch.stack([tokens, tokens % 3], 1).int()
    bias = torch.randn(len(rows), generator=generator)
    for name, given in (
        ("apply_penalties", (torch.arange(9), offsets, counts, torch.rand(9) + 0.5, torch.randn(9), torch.randn(9))),
        ("apply_bias", (rows, tokens, bias)),
        ("mask_tokens", (rows, tokens)),
        ("keep_tokens", (rows, tokens)),
    ):
        ours, theirs, strided = logits.clone(), logits.clone(), logits.T.contiguous().T
        getattr(sampling, name)(ours, *given)
        getattr(sampling, name)(strided, *given)
        with use_face("reference"):
            getattr(sampling, name)(theirs, *given)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(strided, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("row", "token"), [(0, 4), (0, -1), (2, 0), (-1, 0), (2**40, 2**40)])
def test_an_entry_outside_the_logits_is_refused_and_writes_nowhere(level, row, token):
    around = torch.arange(16.0).view(4, 4)
    logits = around[1:3]
    index, tokens = torch.tensor([row]), torch.tensor([token])
    changes = [
        lambda: sampling.apply_bias(logits, index, tokens, torch.ones(1)),
        lambda: sampling.mask_tokens(logits, index, tokens),
        lambda: sampling.keep_tokens(logits, index, tokens),
    ]
    if token < 2**31:
        counts, one = torch.tensor([[token, 1]], dtype=torch.int32), torch.ones(1)
        changes.append(lambda: sampling.apply_penalties(logits, index, torch.tensor([0, 1]), counts, one, one, one))
    for change in changes:
        with pytest.raises(ValueError, match="entry 0 lies outside the logits"):
            change()
    assert torch.equal(around, torch.arange(16.0).view(4, 4))


def test_offsets_that_run_away_and_tokens_outside_are_refused(level):
    logits, rows, ones = torch.zeros(2, 4), torch.tensor([0, 1]), torch.ones(2)
    for middle in (-5, 2**40):
        with pytest.raises(ValueError, match="lies outside"):
            sampling.apply_penalties(
                logits, rows, torch.tensor([0, middle, 1]), torch.zeros(1, 2, dtype=torch.int32), ones, ones, ones
            )
    with pytest.raises(ValueError, match="entry 1 lies outside"):
        sampling.top_logprobs(logits, torch.tensor([0, 4]), 2)
