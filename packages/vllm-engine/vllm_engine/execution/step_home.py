"""``StepHome``: where a step of one token of each sequence is written straight into what a captured step reads."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vllm_engine.layers.attention import AttentionContext


class StepHome(Protocol):
    """Memory of a captured step, for as many sequences as it was asked for. What was there before is lost."""

    ids: Tensor
    positions: Tensor
    context: AttentionContext

    def write(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        tables: list[NDArray[np.int32]],
        rows: NDArray[np.int64],
        block_size: int,
        others: Sequence[NDArray[np.int64]],
    ) -> list[Tensor]:
        """Write a step down: that of the tokens at ``positions`` of some rows of a batch.

        Args:
            token_ids: int64 [S], the tokens.
            positions: int64 [S], their places in their sequences, which are so long with them and no longer.
            tables: of each KV cache group, int32 [max_num_seqs, max_blocks].
            rows: int64 [S], the rows of the tables.
            block_size: tokens of a block.
            others: what the step needs beside that, at most S entries each.

        Returns:
            ``others`` on the device, until the next step is written.

        Raises:
            IndexError: a table names a block that is not there, where that is looked at before the step.
        """
        ...
