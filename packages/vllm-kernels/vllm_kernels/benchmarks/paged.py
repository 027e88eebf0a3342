"""Sequences in blocks that are handed out in random order."""

import itertools

import torch

from vllm_kernels.ops.attention import AttentionMetadata

BLOCK_SIZE = 16


def blocks_of(length: int) -> int:
    """Blocks that a sequence takes."""
    return -(-length // BLOCK_SIZE)


def hand_out(seq_lens: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A block table, int32 ``[num_seqs, most blocks]``, and the slots of each sequence's tokens."""
    counts = [blocks_of(length) for length in seq_lens]
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    slots = []
    for row, own in enumerate((torch.randperm(sum(counts)) + 1).split(counts)):
        table[row, : len(own)] = own
        positions = torch.arange(seq_lens[row])
        slots.append(own[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
    return table, slots


def fill_cache(*entries: torch.Tensor) -> None:
    """Random numbers everywhere, in the type of each tensor."""
    for each in entries:
        each.copy_(torch.randn(each.shape, device=each.device))


def metadata_of(
    query_lens: list[int], seq_lens: list[int], table: torch.Tensor, device: torch.device
) -> AttentionMetadata:
    """Of a step with so many new tokens of sequences that have so many."""
    starts = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32)
    lengths = torch.tensor(seq_lens, dtype=torch.int32)
    return AttentionMetadata(starts.to(device), lengths.to(device), table.to(device), query_lens, seq_lens)
