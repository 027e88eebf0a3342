"""The memory that captured decode steps read, and how a step is written straight into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_engine.layers.attention import AttentionContext


@dataclass(slots=True)
class DecodeInputs:
    """What a captured step of S sequences with one token each reads, at addresses that stay the same.

    ``ids`` and ``positions`` are int64 [S]; ``x`` [S, embedding size] is read in place of ``ids`` where the embedding
    cannot be captured. What the other fields show as arrays is the same memory.
    """

    ids: Tensor
    positions: Tensor
    x: Tensor | None
    context: AttentionContext
    ids_there: NDArray[np.int64]
    positions_there: NDArray[np.int64]
    seq_lens_there: NDArray[np.int32]
    tables_there: list[NDArray[np.int32]]
    slots_there: list[NDArray[np.int64]]

    def fill(self, ids: Tensor, positions: Tensor, step: AttentionContext) -> None:
        """Take over the contents of another step of as many sequences."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        for slots, new in zip(self.context.slot_mappings, step.slot_mappings, strict=True):
            slots.copy_(new)
        for metadata, other in zip(self.context.metadata, step.metadata, strict=True):
            metadata.refill(other)

    def write(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        tables: list[NDArray[np.int32]],
        rows: NDArray[np.int64],
        block_size: int,
        others: Sequence[NDArray[np.int64]],
    ) -> list[Tensor]:
        """As of ``StepHome``. Raises ``IndexError`` where a table names a block that is not there."""
        self.ids_there[:] = token_ids
        self.positions_there[:] = positions
        seq_lens = positions + 1
        self.seq_lens_there[:] = seq_lens
        block_index, offset = np.divmod(positions, block_size)
        width = int(block_index.max()) + 1
        seq_lens_host = seq_lens.tolist()
        for table, there, slots, metadata in zip(
            tables, self.tables_there, self.slots_there, self.context.metadata, strict=True
        ):
            blocks = table[rows, :width]
            there[:, :width] = blocks
            np.multiply(blocks[np.arange(len(rows)), block_index], block_size, out=slots, casting="safe")
            slots += offset
            metadata.refilled(seq_lens_host)
        return [torch.from_numpy(array) for array in others]
