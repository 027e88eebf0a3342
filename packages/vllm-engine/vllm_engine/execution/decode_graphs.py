"""``DecodeGraphs``: decode steps without Python between their kernels."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_engine.execution.graph_use import GraphUse
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.graphs import Graph, GraphPool, NotCapturable, circumstances
from vllm_kernels.ops.attention import AttentionMetadata

logger = get_logger(__name__)


@dataclass(slots=True)
class _Inputs:
    """What a captured step reads, at addresses that stay the same."""

    x: Tensor
    positions: Tensor
    context: AttentionContext

    def fill(self, x: Tensor, positions: Tensor, step: AttentionContext) -> None:
        """Take over the contents of another step of as many sequences."""
        self.x.copy_(x)
        self.positions.copy_(positions)
        for slots, new in zip(self.context.slot_mappings, step.slot_mappings, strict=True):
            slots.copy_(new)
        for metadata, other in zip(self.context.metadata, step.metadata, strict=True):
            metadata.refill(other)


@dataclass(slots=True)
class _Captured:
    inputs: _Inputs
    graph: Graph
    hidden: Tensor


class DecodeGraphs:
    """Runs the layers of a model in steps in which each sequence has one token.

    A step of a model makes some hundred calls of kernels, and with few sequences Python takes as long between them as
    some kernels do. The second step with a certain number of sequences is captured as a graph, and the later ones
    replay it.

    Nothing is captured ahead: a capture costs no more than the step that it is.

    Args:
        model: whose weights and KV caches stay where they are for as long as this object is used.
        block_tables: ``[max_num_seqs, max_blocks]`` of each KV cache group: their shapes are what counts.
        device: of the model.
        use: is told what becomes of each step.
    """

    at_start = pending = False
    when_needed = True

    def __init__(
        self, model: CausalLM, block_tables: Sequence[np.ndarray], device: torch.device, use: GraphUse | None = None
    ) -> None:
        self._model = model
        self._use = use or GraphUse()
        self._device = device
        self._pool = GraphPool(device)
        self._captured: dict[Hashable, _Captured | None] = {}
        max_num_seqs = len(block_tables[0])
        self._x: Tensor | None = None
        self._positions = self._zeros(max_num_seqs, torch.int64)
        self._query_starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._seq_lens = self._zeros(max_num_seqs, torch.int32)
        self._slots = [self._zeros(max_num_seqs, torch.int64) for _ in block_tables]
        self._tables = [self._zeros(table.shape, torch.int32) for table in block_tables]
        self._possible = self._pool.available

    def decode(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        """As ``CausalLM.decode``. The result holds until the next call."""
        one_token_each = len(x) == len(ctx.metadata[0].seq_lens_host)
        if not self._possible or not one_token_each or ctx.wanted is not None:
            return self._call_by_call(x, positions, ctx)
        key = (len(x), circumstances())
        if key not in self._captured:
            self._captured[key] = None
            return self._call_by_call(x, positions, ctx)
        captured = self._captured[key]
        if captured is None:
            return self._capture(key, x, positions, ctx)
        self._use.count("FULL", len(x), len(x))
        captured.inputs.fill(x, positions, ctx)
        captured.graph.replay()
        return captured.hidden

    def capture_next(self) -> None:
        """Nothing is pending."""

    def count(self) -> dict[str, int]:
        """How many numbers of sequences are captured."""
        return {"FULL": sum(captured is not None for captured in self._captured.values())}

    def memory_in_use(self) -> int:
        """Graphs take some kilobytes."""
        return 0

    def _call_by_call(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        self._use.count("NONE", len(x), len(x))
        return self._model.decode(x, positions, ctx)

    def _capture(self, key: Hashable, x: Tensor, positions: Tensor, step: AttentionContext) -> Tensor:
        """Run a step, and keep it."""
        self._use.count("NONE", len(x), len(x))
        inputs = self._inputs(x, step)
        inputs.fill(x, positions, step)
        try:
            graph, hidden = self._pool.capture(
                lambda: self._model.decode(inputs.x, inputs.positions, inputs.context),
            )
        except NotCapturable as reason:
            logger.info("Decode steps run without graphs, which costs some time: %s", reason)
            self._possible = False
            return self._model.decode(x, positions, step)
        self._captured[key] = _Captured(inputs, graph, hidden)
        return hidden

    def _inputs(self, like: Tensor, step: AttentionContext) -> _Inputs:
        """The first rows of what steps of all sizes share."""
        count = len(like)
        if self._x is None:
            self._x = torch.empty(len(self._positions), *like.shape[1:], dtype=like.dtype, device=like.device)
        metadata = [
            AttentionMetadata(
                query_start_loc=self._query_starts[: count + 1],
                seq_lens=self._seq_lens[:count],
                block_table=table[:count],
                query_lens_host=[1] * count,
                seq_lens_host=[0] * count,
            )
            for table in self._tables
        ]
        context = AttentionContext(
            metadata=metadata,
            slot_mappings=[slots[:count] for slots in self._slots],
            group_of_layer=step.group_of_layer,
            kv_caches=step.kv_caches,
        )
        return _Inputs(self._x[:count], self._positions[:count], context)

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)
