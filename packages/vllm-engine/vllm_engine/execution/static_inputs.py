"""The memory that captured steps read, at addresses that stay the same."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vllm_kernels.ops.attention import AttentionMetadata

NOWHERE = -1
"""Slot of a token that is padding."""


class StaticInputs:
    """Inputs of a step, of which captured steps of all sizes use the first rows. All is padding at first.

    Args:
        x: ``[max_tokens, H]``, where the outputs of the embedding go; what is in it is of no matter.
        block_tables: ``[max_num_seqs, max_blocks]`` of each KV cache group: their shapes are what counts.
    """

    def __init__(self, x: Tensor, block_tables: Sequence[np.ndarray]) -> None:
        device, max_tokens, max_num_seqs = x.device, len(x), len(block_tables[0])
        self.x = x
        self.positions = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._slots = torch.full((len(block_tables), max_tokens), NOWHERE, dtype=torch.int64, device=device)
        self._filled = 0
        self._query_starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._seq_lens = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._tables = [torch.zeros(table.shape, dtype=torch.int32, device=device) for table in block_tables]

    def fill(self, x: Tensor, positions: Tensor, slot_mappings: Sequence[Tensor]) -> None:
        """Take over the tokens of a step; what the step before had beyond them becomes padding."""
        count = len(x)
        self.x[:count].copy_(x)
        self.positions[:count].copy_(positions)
        if count < self._filled:
            self._slots[:, count : self._filled].fill_(NOWHERE)
        for slots, new in zip(self._slots, slot_mappings, strict=True):
            slots[:count].copy_(new)
        self._filled = count

    def clear(self) -> None:
        """All is padding again, so that layers that are called to be captured write nothing into the cache."""
        self._slots.fill_(NOWHERE)
        self._filled = 0

    def slot_mappings(self, size: int) -> list[Tensor]:
        """Those of the first tokens, for each group."""
        return [slots[:size] for slots in self._slots]

    def one_token_each(self, size: int, longest: int) -> list[AttentionMetadata]:
        """For each group, a step of ``size`` sequences of length 0 that may get as long as ``longest``.

        What is worked out for it, such as the parts into which keys are cut, is for the longest sequences.
        """
        return [self._metadata(table, size, longest) for table in self._tables]

    def no_sequences(self) -> list[AttentionMetadata]:
        """For each group, a step in which attention has nothing to do."""
        return [self._metadata(table, 0, 0) for table in self._tables]

    def _metadata(self, table: Tensor, count: int, longest: int) -> AttentionMetadata:
        return AttentionMetadata(
            query_start_loc=self._query_starts[: count + 1],
            seq_lens=self._seq_lens[:count],
            block_table=table[:count],
            query_lens_host=[1] * count,
            seq_lens_host=[longest] * count,
        )
