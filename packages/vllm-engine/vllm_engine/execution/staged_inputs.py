"""The memory that captured decode steps read on a GPU, where a step comes by one copy from main memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_engine.layers.attention import AttentionContext
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.transfers import layout, pack, unpack

NOWHERE = -1
"""Slot of a token that is padding."""
OTHERS = 3
"""Arrays that come with a step beside its inputs: see ``StagedHome.write``."""


class StagedMemory:
    """What captured steps of all sizes have in common: they are packed in the same bytes, and have the same tables.

    Args:
        block_tables: of each KV cache group, ``[max_num_seqs, max_blocks]``: their shapes are what counts.
        most: sequences of the largest step, padding included.
        kv_caches, group_of_layer: as of ``AttentionContext``.
        longest: tokens that a sequence may have: what is worked out for a step, such as the parts into which keys are
            cut, is for so long ones.
    """

    def __init__(
        self,
        block_tables: Sequence[NDArray[np.int32]],
        most: int,
        kv_caches: list[KVCache],
        group_of_layer: list[int],
        longest: int,
        device: torch.device,
    ) -> None:
        shapes = [(most, table.shape[1]) for table in block_tables]
        self.tables = [torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes]
        others = [np.zeros(most, np.int64)] * OTHERS
        of_tables = [np.broadcast_to(np.zeros(1, np.int32), shape) for shape in shapes]
        _, size = layout([*padding(most, len(shapes)), *others, *of_tables])
        self.bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self._query_starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._kv_caches = kv_caches
        self._group_of_layer = group_of_layer
        self._longest = longest

    def inputs(self, size: int) -> "StagedInputs":
        """Those of a step of ``size`` sequences. All is padding then, whatever step was there."""
        templates = padding(size, len(self.tables))
        starts, _ = layout(templates)
        ids, positions, *slots, seq_lens = unpack(self.bytes, starts, templates)
        metadata = [
            AttentionMetadata(
                query_start_loc=self._query_starts[: size + 1],
                seq_lens=seq_lens,
                block_table=table[:size],
                query_lens_host=[1] * size,
                seq_lens_host=[self._longest] * size,
            )
            for table in self.tables
        ]
        self.bytes.zero_()
        for of_group in slots:
            of_group.fill_(NOWHERE)
        context = AttentionContext(
            metadata=metadata,
            slot_mappings=slots,
            group_of_layer=self._group_of_layer,
            kv_caches=self._kv_caches,
        )
        return StagedInputs(self, size, ids, positions, context)


@dataclass(slots=True)
class StagedInputs:
    """What a captured step of ``size`` sequences with one token each reads: ids and positions int64 [size], a context.

    A step of fewer sequences is padded: tokens of id 0 without a slot, which belong to sequences of length 0.
    """

    memory: StagedMemory
    size: int
    ids: Tensor
    positions: Tensor
    context: AttentionContext

    def fill(self, ids: Tensor, positions: Tensor, step: AttentionContext) -> None:
        """Take over a step that is on the device already."""
        count = len(ids)
        taken = [(self.ids, ids, 0), (self.positions, positions, 0)]
        taken += [
            (mine, new, NOWHERE) for mine, new in zip(self.context.slot_mappings, step.slot_mappings, strict=True)
        ]
        for mine, new, padding_value in taken:
            mine[:count].copy_(new)
            mine[count:].fill_(padding_value)  # a step of another size may have been in these bytes
        for metadata, other in zip(self.context.metadata, step.metadata, strict=True):
            metadata.refill(other)

    def home(self, count: int) -> "StagedHome":
        """Where a step of ``count`` sequences is written."""
        return StagedHome(self.ids[:count], self.positions[:count], self.context, self)


@dataclass(slots=True)
class StagedHome:
    """A ``StepHome`` of so many sequences as ``ids`` has entries."""

    ids: Tensor
    positions: Tensor
    context: AttentionContext
    inputs: StagedInputs

    def write(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        tables: list[NDArray[np.int32]],
        rows: NDArray[np.int64],
        block_size: int,
        others: Sequence[NDArray[np.int64]],
    ) -> list[Tensor]:
        """As of ``StepHome``; ``others`` are ``OTHERS`` at most. Nobody waits for the device, nor it for anybody."""
        memory, count = self.inputs.memory, len(rows)
        mine = padding(self.inputs.size, len(tables))
        its_ids, its_positions, *slots, seq_lens = mine
        its_ids[:count] = token_ids
        its_positions[:count] = positions
        seq_lens[:count] = positions + 1
        block_index, offset = np.divmod(positions, block_size)
        width = int(block_index.max()) + 1
        blocks = [table[rows, :width] for table in tables]
        for of_group, own in zip(slots, blocks, strict=True):
            of_group[:count] = own[np.arange(count), block_index].astype(np.int64) * block_size + offset
        arrays = [*mine, *others, *blocks]
        packed, starts = pack(arrays, pinned=memory.bytes.device.type == "cuda")
        memory.bytes[: len(packed)].copy_(packed, non_blocking=True)
        there = unpack(memory.bytes, starts[len(mine) :], arrays[len(mine) :])
        for table, new in zip(memory.tables, there[len(others) :], strict=True):
            table[:count, :width].copy_(new)
        seq_lens_host = seq_lens.tolist()
        for metadata in self.context.metadata:
            metadata.refilled(seq_lens_host)
        return there[: len(others)]


def padding(size: int, num_groups: int) -> list[NDArray[np.int64] | NDArray[np.int32]]:
    """The inputs of a step that is nothing else, in the order in which they are packed.

    Ids, positions, and for each KV cache group slots, int64 [size]; lengths of sequences, int32 [size].
    """
    slots = [np.full(size, NOWHERE, np.int64) for _ in range(num_groups)]
    return [np.zeros(size, np.int64), np.zeros(size, np.int64), *slots, np.zeros(size, np.int32)]
