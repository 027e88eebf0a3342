"""Token embedding and the head that turns hidden states into logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.weights import RowsSlot, Slot, TensorSlot, WeightedModule, WeightFormat
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops.add import add
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.linear import linear, rows


@dataclass(frozen=True, slots=True)
class GivenEmbeds:
    """Tokens of a step whose embeddings are given: ``places`` int64 ``[E]`` in ``[T]``, ``rows`` ``[E, size]``."""

    places: Tensor
    rows: Tensor


class Embedding(WeightedModule):
    """Rows of a table ``[num_embeddings, size]``, multiplied by ``scale`` if there is one.

    The scale is rounded to the weights' data type before the product: Gemma was trained with the rounded value.

    ``tied``: the table is the weight of the LM head, too, so it is kept as one.
    """

    weight: LinearWeight | nn.Parameter

    def __init__(self, num_embeddings: int, size: int, *, tied: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.size = size
        self.tied = tied
        self.scale = scale
        if not tied:
            self.weight = nn.Parameter(torch.empty(num_embeddings, size), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[T]`` -> ``[T, size]``."""
        if not isinstance(self.weight, LinearWeight):
            return embedding(ids, self.weight, self.scale)
        found = rows(self.weight, ids)
        return found if self.scale is None else found * torch.tensor(self.scale, dtype=found.dtype)

    def allocate(self, weight_format: WeightFormat) -> None:
        if self.tied:
            self.weight = weight_format.vocabulary(self.num_embeddings, self.size)

    def slots(self, name: str) -> Iterator[tuple[str, Slot]]:
        weight = self.weight
        slot = RowsSlot(weight, 0, self.num_embeddings) if isinstance(weight, LinearWeight) else TensorSlot(weight)
        yield f"{name}.weight", slot


class LearnedPositions(TensorModule):
    """A table of positions ``[offset + num_positions, size]`` whose rows are added to embeddings.

    ``offset``: rows that stand before that of position 0.
    """

    def __init__(self, num_positions: int, size: int, *, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(offset + num_positions, size), requires_grad=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings ``[T, size]`` and their positions, int64 ``[T]`` -> ``[T, size]``."""
        return add(x, embedding(positions, self.weight[self.offset :]))


class LMHead(WeightedModule):
    """Projection to the vocabulary: a matrix of its own, or the token embedding's when that is tied.

    ``soft_cap`` squeezes logits into ``(-soft_cap, soft_cap)`` with tanh (Gemma 2).
    """

    weight: LinearWeight | None

    def __init__(self, table: Embedding, *, soft_cap: float | None = None) -> None:
        super().__init__()
        self.soft_cap = soft_cap
        # In a list, the table is no submodule: a tied head has no weight of its own.
        self._table = [table]
        self.weight = None

    def forward(self, hidden: Tensor) -> Tensor:
        """``[R, size]`` -> float32 logits ``[R, vocab_size]``."""
        weight = self.weight or cast(LinearWeight, self._table[0].weight)
        logits = linear(hidden, weight, out_dtype=torch.float32)
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap

    def allocate(self, weight_format: WeightFormat) -> None:
        (table,) = self._table
        if not table.tied:
            self.weight = weight_format.vocabulary(table.num_embeddings, table.size)

    def slots(self, name: str) -> Iterator[tuple[str, Slot]]:
        if self.weight is not None:
            yield f"{name}.weight", RowsSlot(self.weight, 0, self.weight.out_features)
