"""The memory that steps captured in pieces read, at addresses that stay the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_kernels.ops.attention import AttentionMetadata

NOWHERE = -1
"""Slot of a token that is padding."""


class StaticInputs:
    """Inputs of a step, of which captured steps of all sizes use the first rows. All is padding at first.

    Args:
        x: ``[max_tokens, H]``, where the outputs of the embedding go; what is in it is of no matter.
        num_groups: of the KV cache.
    """

    def __init__(self, x: Tensor, num_groups: int) -> None:
        device, max_tokens = x.device, len(x)
        self.x = x
        self.positions = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._slots = torch.full((num_groups, max_tokens), NOWHERE, dtype=torch.int64, device=device)
        self._filled = 0
        self._no_lengths = torch.zeros(0, dtype=torch.int32, device=device)
        self._one_start = torch.zeros(1, dtype=torch.int32, device=device)

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

    def no_sequences(self) -> list[AttentionMetadata]:
        """For each group, a step in which attention has nothing to do."""
        table = self._no_lengths.view(0, 1)
        return [AttentionMetadata(self._one_start, self._no_lengths, table, [], []) for _ in self._slots]
