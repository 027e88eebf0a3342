"""Into how many parts the kernels for a GPU cut the keys of a step."""

import itertools

import pytest
import torch

from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.ops.attention import AttentionMetadata

pytest.importorskip("triton")

from vllm_kernels.triton.attention_plan import plan_for


def splits(lengths: list[int], invariant: bool = False) -> int:
    """Of a step with one new token of each sequence."""
    count = len(lengths)
    metadata = AttentionMetadata(
        query_start_loc=torch.arange(count + 1, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=torch.zeros(count, 4, dtype=torch.int32),
        query_lens_host=[1] * count,
        seq_lens_host=lengths,
    )
    with use_batch_invariance(invariant):
        (launch,) = plan_for(metadata, group=4, prefill_rows=64, num_kv_heads=8, block_size=16, cascade=True).launches
    return launch.splits


def test_few_sequences_with_long_keys_are_cut_and_many_are_not() -> None:
    assert splits([100]) == 1
    assert splits([8000]) == 32
    assert splits([8000] * 16) == 2
    assert splits([8000] * 64) == 1


def step_of(lengths: list[tuple[int, int]]) -> AttentionMetadata:
    """Of sequences with so many new tokens, and so many in all."""
    new, every = map(list, zip(*lengths, strict=True))
    return AttentionMetadata(
        query_start_loc=torch.tensor([0, *itertools.accumulate(new)], dtype=torch.int32),
        seq_lens=torch.tensor(every, dtype=torch.int32),
        block_table=torch.zeros(len(new), 60, dtype=torch.int32),
        query_lens_host=new,
        seq_lens_host=every,
    )


def test_a_few_tokens_after_a_long_context_are_cut_and_long_prompts_are_not() -> None:
    def splits_of_prompts(*lengths: tuple[int, int]) -> int:
        plan = plan_for(step_of(list(lengths)), group=4, prefill_rows=128, num_kv_heads=8, block_size=16, cascade=True)
        assert plan.part_tokens == sum(new_tokens for new_tokens, _ in lengths)
        return plan.launches[0].splits

    assert splits_of_prompts((30, 30_000)) == 8  # 8 programs for 132 multiprocessors
    assert splits_of_prompts((60, 30_000)) == 8
    assert splits_of_prompts((200, 30_000)) == 2  # 56 programs
    assert splits_of_prompts((30, 1100)) == 2  # 512 keys each
    assert splits_of_prompts((30, 1000)) == splits_of_prompts((512, 30_000)) == 1
    with use_batch_invariance(True):
        assert splits_of_prompts((30, 30_000)) == 1
    # Beside a long prompt of another sequence there is enough to do.
    assert splits_of_prompts((30, 30_000), (4000, 4000)) == 1


def test_tiles_with_the_most_keys_come_first() -> None:
    metadata = step_of([(1, 30), (200, 200), (1, 900), (100, 700), (1, 31)])
    plan = plan_for(metadata, group=1, prefill_rows=64, num_kv_heads=8, block_size=16, cascade=True)
    many, few = [list(zip(tiles.seq.tolist(), tiles.first.tolist(), strict=True)) for tiles in plan.launches]
    assert many == [(3, 64), (3, 0), (1, 192), (1, 128), (1, 64), (1, 0)]
    assert few == [(2, 0), (4, 0), (0, 0)]


def test_a_captured_step_is_cut_for_the_longest_sequence_that_may_come() -> None:
    longest = 4000
    metadata = AttentionMetadata(
        query_start_loc=torch.arange(3, dtype=torch.int32),
        seq_lens=torch.zeros(2, dtype=torch.int32),
        block_table=torch.zeros(2, 300, dtype=torch.int32),
        query_lens_host=[1, 1],
        seq_lens_host=[longest, longest],
    )
    shape = {"group": 4, "prefill_rows": 64, "num_kv_heads": 8, "block_size": 16, "cascade": True}
    plan = plan_for(metadata, **shape)
    step = AttentionMetadata(
        query_start_loc=torch.arange(2, dtype=torch.int32),
        seq_lens=torch.tensor([9], dtype=torch.int32),
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        query_lens_host=[1],
        seq_lens_host=[9],
    )
    metadata.refill(step)
    assert metadata.seq_lens.tolist() == [9, 0]
    assert plan_for(metadata, **shape) is plan
    assert plan.launches[0].splits == splits([longest] * 2) > splits([9])


def test_with_batch_invariance_the_other_sequences_decide_nothing() -> None:
    assert splits([8000], invariant=True) == splits([8000] * 16, invariant=True) == splits([9], invariant=True) == 1
