"""Sampling by Triton kernels beyond what ``test_sampling.py`` asks of every face: rows of many parts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kernels.backend import use_face
from vllm_kernels.ops import sampling as ops

pytest.importorskip("triton")

from vllm_kernels.triton import sampling, sampling_bracket, sampling_candidates, sampling_cut, sampling_row
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.kernel import recorded

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's word on NaN that is masked

SMALL = {"PART": 128, "CANDIDATES": 32, "STRIDE": 128, "CHUNK": 128}
"""Sizes with which short rows go the way of long ones."""


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


@contextmanager
def resized(**sizes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (sampling, sampling_bracket, sampling_candidates, sampling_cut, sampling_row):
            for name, size in sizes.items():
                if hasattr(module, name):
                    patch.setattr(module, name, size)
        yield


@pytest.fixture
def short_parts():
    with resized(**SMALL):
        yield


def kept_by_sorting(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities [V] float64 of what the filters keep, by a sort of the whole row; 0 of what they drop."""
    probabilities = (row.double() / temperature).softmax(0)
    order = torch.sort(row, descending=True, stable=True).indices
    order = order[probabilities[order] >= min_p * probabilities[order[0]]]
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        running = probabilities[order].cumsum(0)
        order = order[(running - probabilities[order] < top_p * running[-1]) | (torch.arange(len(order)) == 0)]
    kept = torch.zeros_like(probabilities)
    kept[order] = probabilities[order]
    return kept


def check_draw(token: int, uniform: float, kept: torch.Tensor) -> None:
    """That the draw ends at ``token``, but for rounding of the sums."""
    running = kept.cumsum(0) / kept.sum()
    assert kept[token] > 0
    before = running[token] - kept[token] / kept.sum()
    assert before - 1e-6 <= uniform <= running[token] + 1e-6


LARGE = {
    "all": (1.0, 0, 1.0, 0.0),
    "top_k": (0.7, 50, 1.0, 0.0),
    "many top_k": (1.0, 20_000, 1.0, 0.0),
    "top_p": (1.0, 0, 0.9, 0.0),
    "low top_p": (0.8, 0, 0.05, 0.0),
    "top_k and top_p": (1.3, 300, 0.95, 0.0),
    "all filters": (2.0, 15_000, 0.7, 0.001),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_row_of_many_parts_with_many_ties_keeps_what_a_sort_keeps(kind):
    torch.manual_seed(list(LARGE).index(kind))
    logits = (torch.randn(1, 40_000) * 8).round() / 4
    logits[0, :100] = -math.inf
    logits[0, 100] = -1e9
    arguments = [torch.tensor([value]) for value in LARGE[kind]]
    kept = kept_by_sorting(logits[0], *LARGE[kind])
    uniforms = torch.tensor([0.43], dtype=torch.float64)
    with resized(CHUNK=4096, STRIDE=8192):  # fewer turns for the interpreter
        token = ops.sample(logits, *arguments, uniforms).item()
        filtered = ops.filter_logits(logits, *arguments)[0]
    check_draw(token, 0.43, kept)
    if kind != "all":
        assert torch.equal(filtered > -math.inf, kept > 0)


@settings(max_examples=12, deadline=None)
@given(
    vocab_size=st.integers(33, 700),
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["smooth", "ties", "equal", "outliers", "narrow", "masked", "around zero"]),
)
def test_any_filters_of_any_row_equal_the_reference(vocab_size, seed, kind):
    torch.manual_seed(seed)
    logits = torch.randn(1, vocab_size) * 3
    if kind == "ties":
        logits = logits.round()
    elif kind == "equal":
        logits.fill_(-3.5)
    elif kind == "outliers":
        logits[0, torch.randint(0, vocab_size, (9,))] = -1e30
        logits[0, torch.randint(0, vocab_size, (2,))] = 50.0
    elif kind == "narrow":
        logits = 20 + logits * 1e-6
    elif kind == "masked":
        logits.masked_fill_(torch.rand(1, vocab_size) < 0.7, -math.inf)
        logits[0, 0] = 1.0
    elif kind == "around zero":
        logits = logits.sign() * torch.exp2(-20 * torch.rand(1, vocab_size))
        logits[0, ::7] *= 0.0

    def maybe(value: torch.Tensor, neutral: float) -> torch.Tensor:
        return value if torch.rand(()) < 0.6 else torch.full_like(value, neutral)

    arguments = (
        logits,
        torch.rand(1) * 2 + 0.1,
        maybe(torch.randint(1, vocab_size + 1, (1,)), 0),
        maybe(torch.rand(1, dtype=torch.float64) * 0.98 + 0.01, 1.0),
        maybe(torch.rand(1, dtype=torch.float64) ** 3, 0.0),
    )
    uniforms = torch.rand(1, dtype=torch.float64)
    with resized(**SMALL):
        filtered, token = ops.filter_logits(*arguments), ops.sample(*arguments, uniforms)
    with use_face("reference"):
        torch.testing.assert_close(filtered, ops.filter_logits(*arguments), rtol=1e-6, atol=0)
        assert token == ops.sample(*arguments, uniforms)


def test_a_row_gives_the_same_token_however_it_is_cut():
    torch.manual_seed(0)
    logits = torch.randn(4, 600) * 2
    arguments = (
        logits,
        torch.tensor([1.0, 0.6, 1.5, 2.0]),
        torch.tensor([0, 20, 0, 400]),
        torch.tensor([1.0, 1.0, 0.8, 0.9]),
        torch.tensor([0.0, 0.0, 0.0, 0.01]),
        torch.rand(4, dtype=torch.float64),
    )
    whole = ops.sample(*arguments)
    with resized(**SMALL):
        assert torch.equal(ops.sample(*arguments), whole)
        assert ops.sample(*(each[2:3] for each in arguments)) == whole[2]


def test_rows_that_cannot_be_sampled_are_told_in_any_part(short_parts):
    logits = torch.zeros(5, 500)
    logits[0, 400] = math.nan
    logits[1, 130] = math.inf
    logits[2] = -math.inf
    logits[3, 499] = 1.0
    one = torch.ones(5)
    for top_k, top_p in ((0, 1.0), (60, 0.5)):
        tokens = ops.sample(logits, one, torch.full((5,), top_k), one * top_p, one * 0, torch.zeros(5).double())
        assert tokens.tolist() == [-1, -1, -1, 0, 0]
    assert ops.greedy(logits).tolist() == [-1, -1, -1, 499, 0]
    assert torch.equal(
        ops.filter_logits(logits, one, one.long() * 9, one, one)[:3].nan_to_num(), logits[:3].nan_to_num()
    )
    assert ops.top_logprobs(logits, torch.zeros(5, dtype=torch.int64), 20)[1][:3].isnan().all()


@pytest.mark.parametrize("k", [0, 1, 10, 60, 200])
def test_log_probabilities_of_many_parts_equal_the_reference(short_parts, k, monkeypatch):
    monkeypatch.setattr(sampling, "LARGEST_RANKED", 100)
    monkeypatch.setattr(sampling_cut, "RANKED_WIDTHS", (16, 64))  # the interpreter takes seconds to sort 1024
    torch.manual_seed(k)
    logits = torch.randn(2, 400).mul(3).round() * torch.tensor([[1.0], [-1.0]])  # with zeros of both signs
    logits[0, 300:] = -math.inf
    tokens = torch.tensor([7, 399])
    ids, logprobs, ranks = ops.top_logprobs(logits, tokens, k)
    with use_face("reference"):
        expected = ops.top_logprobs(logits, tokens, k)
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(logprobs, expected[1], rtol=0, atol=1e-5)
    assert torch.equal(ranks, expected[2])


def test_what_lies_outside_is_left_out():
    logits = torch.zeros(2, 300)
    rows, tokens = torch.tensor([0, -1, 2, 1, 1]), torch.tensor([300, 3, 3, -1, 2**40])
    ops.apply_bias(logits, rows, tokens, torch.ones(5))
    ops.mask_tokens(logits, rows, tokens)
    ops.keep_tokens(logits, rows, tokens)
    counts = torch.tensor([[300, 1], [-1, 1], [5, 2], [6, 1]], dtype=torch.int32)
    penalties = (torch.ones(2), torch.zeros(2), torch.ones(2))
    ops.apply_penalties(logits, torch.tensor([0, 2]), torch.tensor([0, 3, 4]), counts, *penalties)
    assert logits[0, 5] == -2 and logits.sum() == -2
    _, logprobs, _ = ops.top_logprobs(logits, torch.tensor([-1, 300]), 1)
    assert logprobs[:, 0].isnan().all() and logprobs[:, 1].isfinite().all()


def test_logits_of_any_strides_are_changed_in_place():
    logits = torch.zeros(40, 3).T
    ops.keep_tokens(logits, torch.tensor([1, 1]), torch.tensor([4, 9]))
    ops.apply_bias(logits, torch.tensor([1, 2]), torch.tensor([9, 0]), torch.tensor([1.0, 2.0]))
    assert logits[1].isfinite().nonzero().flatten().tolist() == [4, 9]
    assert ops.greedy(logits).tolist() == [0, 9, 0]


def test_what_is_launched_is_what_is_compiled_ahead():
    logits, one = torch.zeros(1, 8200), torch.ones(1)
    zero = torch.zeros(1, dtype=torch.int64)
    with recorded() as launches:
        ops.greedy(logits)
        ops.sample(logits, one, zero, one, one, one.double() / 2)
        ops.filter_logits(logits[:, :5], one, zero, one, one)
        ops.top_logprobs(logits[:, :5], zero, 2)
        ops.apply_bias(logits, zero, zero, one)
        ops.mask_tokens(logits, zero, zero)
        ops.keep_tokens(logits, zero, zero)
        ops.apply_penalties(logits, zero, torch.tensor([0, 1]), torch.zeros(1, 2, dtype=torch.int32), one, one, one)
    seen = set()
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)
        seen.add(kernel.name)
    ours = {kernel.name for kernel in KERNELS if kernel.function.fn.__module__.startswith(sampling.__name__)}
    assert seen == ours and len(ours) == 14
