"""From rows and token counts to the tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_engine.execution.input_batch import InputBatch
from vllm_kernels.ops.attention import AttentionMetadata


@dataclass(slots=True)
class StepInputs:
    """The tokens of one step, sequence after sequence.

    ``input_ids`` and ``positions`` are int64 [T]. ``metadata`` and ``slot_mappings`` have one entry per KV group.
    ``sampled`` are the sequences (places in [S]) that reach their last known token, ``sample_indices`` where in [T] it
    stands.
    ``starts`` [S] is the first position of each sequence in this step, ``offsets`` [S + 1] its place in [T].
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    metadata: list[AttentionMetadata]
    slot_mappings: list[torch.Tensor]
    sampled: np.ndarray
    sample_indices: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray


def build_step_inputs(batch: InputBatch, rows: np.ndarray, counts: np.ndarray, device: torch.device) -> StepInputs:
    """Gather the next ``counts[i]`` tokens of row ``rows[i]`` for every sequence of the step.

    Args:
        batch: the persistent rows.
        rows: int64 [S], batch rows in the order of the step.
        counts: int64 [S], tokens to compute of each, at least 1.
        device: where the tensors go.
    """
    starts = batch.num_computed_tokens[rows]
    seq_lens = starts + counts
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    token_rows = np.repeat(rows, counts)
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    input_ids = batch.token_ids[token_rows, positions]

    block_index, block_offset = np.divmod(positions, batch.block_size)
    max_blocks = int(-(-seq_lens.max() // batch.block_size))
    query_start_loc = _to(device, offsets.astype(np.int32))
    seq_lens_device = _to(device, seq_lens.astype(np.int32))
    metadata, slot_mappings = [], []
    for table in batch.block_tables:
        slots = table[token_rows, block_index].astype(np.int64) * batch.block_size + block_offset
        slot_mappings.append(_to(device, slots))
        metadata.append(
            AttentionMetadata(
                query_start_loc=query_start_loc,
                seq_lens=seq_lens_device,
                block_table=_to(device, table[rows, :max_blocks]),
                query_lens_host=counts.tolist(),
                seq_lens_host=seq_lens.tolist(),
            )
        )
    sampled = np.flatnonzero(seq_lens == batch.num_tokens[rows])
    return StepInputs(
        input_ids=_to(device, input_ids),
        positions=_to(device, positions),
        metadata=metadata,
        slot_mappings=slot_mappings,
        sampled=sampled,
        sample_indices=offsets[1:][sampled] - 1,
        starts=starts,
        offsets=offsets,
    )


def _to(device: torch.device, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
