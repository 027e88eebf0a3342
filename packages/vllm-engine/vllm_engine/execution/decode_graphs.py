"""``DecodeGraphs``: decode steps without Python between their kernels."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_engine.execution.decode_inputs import DecodeInputs
from vllm_engine.execution.graph_use import GraphUse
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import GivenEmbeds
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.graphs import Graph, GraphPool, NotCapturable, circumstances
from vllm_kernels.ops.attention import AttentionMetadata

logger = get_logger(__name__)


@dataclass(slots=True)
class _Captured:
    inputs: DecodeInputs
    graph: Graph
    hidden: Tensor


class DecodeGraphs:
    """Runs embedding and layers of a model in steps in which each sequence has one token.

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
        self._pool = GraphPool(device)
        self._captured: dict[Hashable, _Captured | None] = {}
        max_num_seqs = len(block_tables[0])
        self._embeds = True
        """Whether the embedding is captured, too: a model may do with it what cannot be."""
        self._x = torch.zeros(max_num_seqs, model.embedding.size, dtype=model.dtype, device=device)
        self._query_starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._ids = np.zeros(max_num_seqs, np.int64)
        self._positions = np.zeros(max_num_seqs, np.int64)
        self._seq_lens = np.zeros(max_num_seqs, np.int32)
        self._slots = [np.zeros(max_num_seqs, np.int64) for _ in block_tables]
        self._tables = [np.zeros(table.shape, np.int32) for table in block_tables]
        self._possible = self._pool.available

    def home(self, num_seqs: int) -> DecodeInputs | None:
        """As of ``ForwardGraphs``."""
        captured = self._captured.get((num_seqs, circumstances())) if self._possible else None
        return None if captured is None else captured.inputs

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, given: GivenEmbeds | None = None
    ) -> Tensor:
        """As ``CausalLM.forward``. The result holds until the next call."""
        count = len(input_ids)
        one_token_each = count == len(ctx.metadata[0].seq_lens_host)
        if not self._possible or not one_token_each or ctx.wanted is not None or given is not None:
            return self._call_by_call(input_ids, positions, ctx, given)
        key = (count, circumstances())
        if key not in self._captured:
            self._captured[key] = None
            return self._call_by_call(input_ids, positions, ctx)
        captured = self._captured[key]
        self._use.count("NONE" if captured is None else "FULL", count, count)
        if captured is None:
            return self._capture(key, input_ids, positions, ctx)
        inputs = captured.inputs
        if ctx.metadata is not inputs.context.metadata:
            inputs.fill(input_ids, positions, ctx)
        if inputs.x is not None:
            inputs.x.copy_(self._model.embed(inputs.ids))
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

    def _call_by_call(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, given: GivenEmbeds | None = None
    ) -> Tensor:
        self._use.count("NONE", len(input_ids), len(input_ids))
        return self._model.forward(input_ids, positions, ctx, given)

    def _capture(self, key: Hashable, input_ids: Tensor, positions: Tensor, step: AttentionContext) -> Tensor:
        """Run a step, and keep it."""
        inputs = self._inputs(len(input_ids), step)
        inputs.fill(input_ids, positions, step)
        if inputs.x is not None:
            inputs.x.copy_(self._model.embed(inputs.ids))
        try:
            graph, hidden = self._pool.capture(lambda: self._layers(inputs))
        except NotCapturable as reason:
            if self._embeds:
                self._embeds = False
                return self._capture(key, input_ids, positions, step)
            logger.info("Decode steps run without graphs, which costs some time: %s", reason)
            self._possible = False
            return self._model.forward(input_ids, positions, step)
        self._captured[key] = _Captured(inputs, graph, hidden)
        return hidden

    def _layers(self, inputs: DecodeInputs) -> Tensor:
        x = self._model.embed(inputs.ids) if inputs.x is None else inputs.x
        return self._model.decode(x, inputs.positions, inputs.context)

    def _inputs(self, count: int, step: AttentionContext) -> DecodeInputs:
        """The first rows of what steps of all sizes share."""
        ids, positions, seq_lens = self._ids[:count], self._positions[:count], self._seq_lens[:count]
        tables, slots = [table[:count] for table in self._tables], [slots[:count] for slots in self._slots]
        seq_lens_there = torch.from_numpy(seq_lens)
        metadata = [
            AttentionMetadata(
                query_start_loc=self._query_starts[: count + 1],
                seq_lens=seq_lens_there,
                block_table=torch.from_numpy(table),
                query_lens_host=[1] * count,
                seq_lens_host=[0] * count,
            )
            for table in tables
        ]
        context = AttentionContext(
            metadata=metadata,
            slot_mappings=[torch.from_numpy(of_group) for of_group in slots],
            group_of_layer=step.group_of_layer,
            kv_caches=step.kv_caches,
        )
        x = None if self._embeds else self._x[:count]
        tensors = torch.from_numpy(ids), torch.from_numpy(positions)
        return DecodeInputs(*tensors, x, context, ids, positions, seq_lens, tables, slots)
