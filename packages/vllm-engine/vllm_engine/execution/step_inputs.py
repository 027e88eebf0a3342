"""From rows and token counts to the tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_engine.execution.input_batch import InputBatch
from vllm_engine.execution.step_home import StepHome
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.transfers import upload_arrays

LEAST_SHARING = 4
"""Sequences from which on a prefix that all have is looked for."""


@dataclass(slots=True)
class StepInputs:
    """The tokens of one step, sequence after sequence.

    ``input_ids`` and ``positions`` are int64 [T]. ``metadata`` and ``slot_mappings`` have one entry per KV group.
    ``sampled`` are the sequences (places in [S]) that reach their last known token, ``sample_indices`` int64, on the
    device, where in [T] it stands.
    ``starts`` [S] is the first position of each sequence in this step, ``offsets`` [S + 1] its place in [T].
    Some last tokens, at ``late_places`` in [T], are only known to the device, which has them at ``late_sources`` among
    those chosen in the step before (int64 [L], on the device, both): ``input_ids`` has 0 there.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    metadata: list[AttentionMetadata]
    slot_mappings: list[torch.Tensor]
    sampled: NDArray[np.int64]
    sample_indices: torch.Tensor
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    late_sources: torch.Tensor
    late_places: torch.Tensor


def build_step_inputs(
    batch: InputBatch, rows: np.ndarray, counts: np.ndarray, device: torch.device, home: StepHome | None = None
) -> StepInputs:
    """Gather the next ``counts[i]`` tokens of row ``rows[i]`` for every sequence of the step.

    Args:
        batch: the persistent rows.
        rows: int64 [S], batch rows in the order of the step.
        counts: int64 [S], tokens to compute of each, at least 1.
        device: where the tensors go, all by one copy.
        home: of so many sequences with one token each: where the step is written then. What was there before is lost.
    """
    if home is not None:
        return _write_into(home, batch, rows)
    starts = batch.num_computed_tokens[rows]
    seq_lens = starts + counts
    reaches_last = seq_lens == batch.num_tokens[rows]
    sampled = np.flatnonzero(reaches_last)
    late = np.flatnonzero(reaches_last & batch.last_is_unknown[rows])
    if int(counts.sum()) == len(rows):  # one token each: most steps, and then most of this says nothing new
        offsets = np.arange(len(rows) + 1)
        token_rows, positions, sample_indices, late_places = rows, starts, sampled, late
    else:
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        token_rows = np.repeat(rows, counts)
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        last_places = offsets[1:] - 1
        sample_indices, late_places = last_places[sampled], last_places[late]
    input_ids = batch.token_ids[token_rows, positions]

    block_index, block_offset = np.divmod(positions, batch.block_size)
    max_blocks = int(-(-seq_lens.max() // batch.block_size))
    tables = [table[rows, :max_blocks] for table in batch.block_tables]
    arrays = [
        input_ids,
        positions,
        offsets.astype(np.int32),
        seq_lens.astype(np.int32),
        sample_indices,
        late_places,
        batch.chosen_place[rows[late]],
        *tables,
        *(
            table[token_rows, block_index].astype(np.int64) * batch.block_size + block_offset
            for table in batch.block_tables
        ),
    ]
    there = upload_arrays(arrays, device)
    input_ids_there, positions_there, query_start_loc, seq_lens_there, samples_there, places, sources, *rest = there
    tables_there, slot_mappings = rest[: len(tables)], rest[len(tables) :]
    query_lens_host, seq_lens_host = counts.tolist(), seq_lens.tolist()
    metadata = [
        AttentionMetadata(
            query_start_loc=query_start_loc,
            seq_lens=seq_lens_there,
            block_table=table_there,
            query_lens_host=query_lens_host,
            seq_lens_host=seq_lens_host,
            # Only the kernels for a GPU read a common prefix once for all.
            common_prefix_len=0 if device.type == "cpu" else _common_prefix_len(table, starts, batch.block_size),
        )
        for table, table_there in zip(tables, tables_there, strict=True)
    ]
    return StepInputs(
        input_ids=input_ids_there,
        positions=positions_there,
        metadata=metadata,
        slot_mappings=slot_mappings,
        sampled=sampled,
        sample_indices=samples_there,
        starts=starts,
        offsets=offsets,
        late_sources=sources,
        late_places=places,
    )


def _write_into(home: StepHome, batch: InputBatch, rows: NDArray[np.int64]) -> StepInputs:
    """As ``build_step_inputs``, of one token each, in the memory that a captured step reads."""
    positions = batch.num_computed_tokens[rows]
    reaches_last = positions + 1 == batch.num_tokens[rows]
    sampled = np.flatnonzero(reaches_last)
    late = np.flatnonzero(reaches_last & batch.last_is_unknown[rows])
    samples, places, sources = home.write(
        batch.token_ids[rows, positions],
        positions,
        batch.block_tables,
        rows,
        batch.block_size,
        [sampled, late, batch.chosen_place[rows[late]]],
    )
    return StepInputs(
        input_ids=home.ids,
        positions=home.positions,
        metadata=home.context.metadata,
        slot_mappings=home.context.slot_mappings,
        sampled=sampled,
        sample_indices=samples,
        starts=positions,
        offsets=np.arange(len(rows) + 1),
        late_sources=sources,
        late_places=places,
    )


def _common_prefix_len(table: NDArray[np.int32], starts: NDArray[np.int64], block_size: int) -> int:
    """Tokens, in whole blocks and before the new ones, for which all rows of a block table name the same blocks."""
    if len(table) < LEAST_SHARING:
        return 0
    most = int(starts.min()) // block_size
    if not most or (table[:, 0] != table[0, 0]).any():  # the usual case, at once
        return 0
    differs = np.flatnonzero((table[:, :most] != table[0, :most]).any(axis=0))
    return int(differs[0] if len(differs) else most) * block_size
