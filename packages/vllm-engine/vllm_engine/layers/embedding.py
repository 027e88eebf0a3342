"""Token embedding and the head that turns hidden states into logits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm_engine.layers.module import TensorModule
from vllm_kernels.ops.linear import linear


@dataclass(frozen=True, slots=True)
class GivenEmbeds:
    """Tokens of a step whose embeddings are given: ``places`` int64 ``[E]`` in ``[T]``, ``rows`` ``[E, size]``."""

    places: Tensor
    rows: Tensor


class Embedding(TensorModule):
    """Rows of a table ``[num_embeddings, size]``, multiplied by ``scale`` if there is one.

    The scale is rounded to the weights' data type before the product: Gemma was trained with the rounded value.
    """

    def __init__(self, num_embeddings: int, size: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_embeddings, size), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[T]`` -> ``[T, size]``."""
        rows = functional.embedding(ids, self.weight)
        return rows if self.scale is None else rows * torch.tensor(self.scale, dtype=rows.dtype)


class LMHead(TensorModule):
    """Projection to the vocabulary: a matrix of its own, or the token embedding's when the two are tied.

    ``soft_cap`` squeezes logits into ``(-soft_cap, soft_cap)`` with tanh (Gemma 2).
    """

    def __init__(self, embedding: Embedding, *, tied: bool, soft_cap: float | None = None) -> None:
        super().__init__()
        self.soft_cap = soft_cap
        # In a list, the embedding is no submodule: a tied head has no parameters of its own.
        self._tied_to = [embedding] if tied else []
        self.weight = None if tied else nn.Parameter(torch.empty_like(embedding.weight), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[R, size]`` -> float32 logits ``[R, vocab_size]``."""
        weight = self._tied_to[0].weight if self.weight is None else self.weight
        logits = linear(hidden, weight).float()
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap
