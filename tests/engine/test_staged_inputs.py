"""The bytes that captured decode steps read: a step of any size finds its own there, and padding behind it."""

import numpy as np
import pytest
import torch

from vllm_engine.execution.staged_inputs import NOWHERE, StagedInputs, StagedMemory
from vllm_engine.layers.attention import AttentionContext
from vllm_kernels.ops.attention import AttentionMetadata

BLOCK, LONGEST = 4, 40
TABLES = [np.arange(60, dtype=np.int32).reshape(6, 10) + 100 * group for group in (1, 2)]


@pytest.fixture
def memory() -> StagedMemory:
    return StagedMemory(TABLES, 8, [], [0, 1], LONGEST, torch.device("cpu"))


def check(inputs: StagedInputs, token_ids: list[int], positions: list[int], rows: list[int]) -> None:
    """That these inputs are of a step with one token in each of ``rows``."""
    pad = inputs.size - len(rows)
    assert inputs.ids.tolist() == token_ids + [0] * pad
    assert inputs.positions.tolist() == positions + [0] * pad
    pairs = list(zip(rows, positions, strict=True))
    context = inputs.context
    for table, slots, metadata in zip(TABLES, context.slot_mappings, context.metadata, strict=True):
        expected = [int(table[row, place // BLOCK]) * BLOCK + place % BLOCK for row, place in pairs]
        assert slots.tolist() == expected + [NOWHERE] * pad
        lengths = [place + 1 for place in positions] + [0] * pad
        assert metadata.seq_lens.tolist() == metadata.seq_lens_host == lengths
        assert metadata.query_start_loc.tolist() == list(range(inputs.size + 1))
        for at, (row, place) in enumerate(pairs):
            known = place // BLOCK + 1
            assert metadata.block_table[at, :known].tolist() == table[row, :known].tolist()


def write(inputs: StagedInputs, token_ids: list[int], positions: list[int], rows: list[int], *others: list[int]):
    home = inputs.home(len(rows))
    assert len(home.ids) == len(home.positions) == len(rows) and home.context is inputs.context
    arrays = [np.array(each, dtype=np.int64) for each in (token_ids, positions, rows, *others)]
    return home.write(arrays[0], arrays[1], TABLES, arrays[2], BLOCK, arrays[3:])


def test_a_step_that_is_written_is_there_with_padding_and_what_came_with_it(memory: StagedMemory) -> None:
    inputs = memory.inputs(4)
    there = write(inputs, [7, 8, 9], [0, 5, 39], [2, 0, 5], [1, 2], [], [0])
    check(inputs, [7, 8, 9], [0, 5, 39], [2, 0, 5])
    assert [tensor.tolist() for tensor in there] == [[1, 2], [], [0]]
    write(inputs, [3], [11], [1], [0], [], [])
    check(inputs, [3], [11], [1])


def test_steps_of_several_sizes_take_turns_in_the_same_bytes(memory: StagedMemory) -> None:
    large, small = memory.inputs(8), memory.inputs(2)
    for _ in range(2):
        write(large, [5] * 6, [39, 38, 37, 36, 35, 34], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5], [4])
        check(large, [5] * 6, [39, 38, 37, 36, 35, 34], [0, 1, 2, 3, 4, 5])
        write(small, [6, 4], [1, 17], [5, 3], [0, 1], [0, 1], [1, 0])
        check(small, [6, 4], [1, 17], [5, 3])


def test_a_step_that_is_on_the_device_is_taken_over_with_padding_behind_it(memory: StagedMemory) -> None:
    rows, positions = [4, 1], [3, 30]
    write(memory.inputs(8), [5] * 6, [39, 38, 37, 36, 35, 34], [0, 1, 2, 3, 4, 5])
    inputs = memory.inputs(4)
    slots, metadata = [], []
    for table in TABLES:
        places = [int(table[row, at // BLOCK]) * BLOCK + at % BLOCK for row, at in zip(rows, positions, strict=True)]
        slots.append(torch.tensor(places))
        lengths = torch.tensor(positions, dtype=torch.int32) + 1
        starts, blocks = torch.arange(3, dtype=torch.int32), torch.from_numpy(table[rows])
        metadata.append(AttentionMetadata(starts, lengths, blocks, [1, 1], lengths.tolist()))
    inputs.fill(torch.tensor([8, 9]), torch.tensor(positions), AttentionContext(metadata, slots, [0, 1], []))
    check(inputs, [8, 9], positions, rows)


def test_inputs_that_are_new_are_padding_whatever_was_there(memory: StagedMemory) -> None:
    write(memory.inputs(8), [5] * 6, [39, 38, 37, 36, 35, 34], [0, 1, 2, 3, 4, 5])
    inputs = memory.inputs(3)
    assert inputs.ids.tolist() == inputs.positions.tolist() == [0] * 3
    for slots, metadata in zip(inputs.context.slot_mappings, inputs.context.metadata, strict=True):
        assert slots.tolist() == [NOWHERE] * 3 and metadata.seq_lens.tolist() == [0] * 3
        assert metadata.seq_lens_host == [LONGEST] * 3
