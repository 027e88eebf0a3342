"""A prefix that all sequences have in common: read once for all of them, it gives what reading it for each gives."""

import dataclasses

import pytest
import torch

from tests.kernels.paged import Step, random_sequence, step_of
from tests.kernels.test_attention import attend, features, oracle
from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance

pytest.importorskip("triton")

from vllm_kernels.triton import attention_plan
from vllm_kernels.triton.kernel import recorded

BLOCK_SIZE = 16
# New and all tokens, the first 48 of which are common: single tokens, a chunk, a whole prompt after its prefix.
LENGTHS = [(1, 49), (1, 70), (3, 51), (17, 80)]


def shared_step(lengths=LENGTHS, prefix: int = 48, **options) -> Step:
    """Sequences whose first blocks are the same ones. Those that each would have had for itself hold NaN."""
    sequences = [random_sequence(*pair, **options) for pair in lengths]
    first = sequences[0]
    for sequence in sequences:
        sequence.key[:prefix], sequence.value[:prefix] = first.key[:prefix], first.value[:prefix]
    step = step_of(sequences, BLOCK_SIZE)
    table, blocks = step.metadata.block_table, prefix // BLOCK_SIZE
    unused = table[1:, :blocks].flatten().long()
    step.cache.key[unused] = step.cache.value[unused] = torch.nan
    table[:, :blocks] = table[0, :blocks]
    return step


def with_prefix(step: Step, length: int) -> Step:
    metadata = dataclasses.replace(step.metadata, common_prefix_len=length)
    return dataclasses.replace(step, metadata=metadata)


@pytest.fixture
def eager_for_cascades(monkeypatch):
    """Takes the path for short prefixes of few sequences, too, with several parts of them."""
    monkeypatch.setattr(attention_plan, "CASCADE_TOKENS", 16)
    monkeypatch.setattr(attention_plan, "CASCADE_SHARE", 1)
    monkeypatch.setattr(attention_plan, "SPLIT_TOKENS", 24)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("plain", torch.float32), ("soft cap", torch.float32), ("sinks", torch.float32), ("plain", torch.float16)],
    ids=str,
)
def test_a_common_prefix_equals_float64_and_the_plain_path(eager_for_cascades, kind, dtype):
    torch.manual_seed(0)
    options, step = features(4)[kind], shared_step(dtype=dtype)
    expected = oracle(step, **options)
    with use_face("triton"):
        plain = attend(step, **options)
        for length in (48, 42):
            with recorded() as launches:
                result = attend(with_prefix(step, length), **options)
            assert [kernel.name for kernel, _ in launches] == [
                "attention_kernel", "attention_kernel", "merge_kernel", "attention_kernel", "merge_kernel",
            ]  # fmt: skip
            tolerance = 1e-5 if dtype == torch.float32 else 3e-3
            assert (result.double() - expected).abs().max() < tolerance
            assert (result - plain).abs().max() < tolerance


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["window", "alibi"])
def test_tokens_that_see_the_prefix_each_in_its_own_way_take_the_plain_path(eager_for_cascades, kind):
    torch.manual_seed(0)
    options, step = features(4)[kind], shared_step()
    with use_face("triton"):
        assert torch.equal(attend(with_prefix(step, 48), **options), attend(step, **options))


@pytest.mark.triton
def test_a_prefix_that_ends_inside_of_new_tokens_is_cut(eager_for_cascades):
    torch.manual_seed(0)
    step = shared_step([(1, 49), (30, 60), (1, 50)])  # all but 30 tokens of the second are new
    with use_face("triton"):
        result = attend(with_prefix(step, 48))
    assert (result.double() - oracle(step)).abs().max() < 1e-5


def test_the_path_is_chosen_by_the_shape():
    def prefix_of(count: int, length: int, query_len: int = 1) -> attention_plan.Prefix | None:
        step = with_prefix(shared_step([(query_len, length + query_len)] * count, length), length)
        return attention_plan.plan_for(step.metadata, 2, 16, 2, BLOCK_SIZE, cascade=True).prefix

    assert prefix_of(16, 256) is not None
    assert prefix_of(16, 240) is None  # too little to save
    assert prefix_of(3, 256) is None  # too few that share it
    assert prefix_of(4, 256, 64) is None  # whole tiles of each read it as well
    with use_batch_invariance(True):
        assert prefix_of(16, 256) is None


@pytest.mark.parametrize("served", ["reference", "eager", "triton"])
def test_any_face_takes_a_common_prefix(served):
    torch.manual_seed(0)
    step = shared_step()
    with use_face(served):
        assert (attend(with_prefix(step, 48)).double() - oracle(step)).abs().max() < 1e-5


@pytest.mark.triton
def test_a_step_that_follows_must_have_the_prefix_too(eager_for_cascades):
    torch.manual_seed(0)
    step, next_step = (with_prefix(shared_step([(1, 49), (1, 52), (1, 51)]), 48) for _ in range(2))
    with use_face("triton"):
        attend(step)
        step.metadata.refill(next_step.metadata)
        step = dataclasses.replace(next_step, metadata=step.metadata)
        assert (attend(step).double() - oracle(next_step)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="as long a common prefix"):
        step.metadata.refill(with_prefix(next_step, 32).metadata)


def test_a_wrong_prefix_is_named():
    step = shared_step()
    for length in (-1, 50):
        with pytest.raises(ValueError, match=f"common_prefix_len must be 0 to 49, got {length}"):
            attend(with_prefix(step, length))
