"""``StepGraphs``: steps on a GPU without Python between their kernels."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_engine.config.graph_plan import GraphPlan, size_for
from vllm_engine.execution.graph_use import GraphUse
from vllm_engine.execution.staged_inputs import StagedHome, StagedInputs, StagedMemory
from vllm_engine.execution.static_inputs import StaticInputs
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import GivenEmbeds
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels import batch_invariance
from vllm_kernels.graphs import Graph, GraphPool, NotCapturable, Pieces
from vllm_kernels.ops.cache import KVCache

logger = get_logger(__name__)

FULL, PIECEWISE = "FULL", "PIECEWISE"


@dataclass(slots=True)
class _Captured:
    """A captured step: a whole one, which reads ``inputs``, or one in pieces, whose attention reads ``context``."""

    context: AttentionContext
    graph: Graph
    hidden: Tensor
    inputs: StagedInputs | None = None

    def replay(self, num_tokens: int, wanted: Tensor | None) -> Tensor:
        """The hidden states of a step that is where the graph reads it; of the ``wanted`` tokens, or all."""
        self.graph.replay()
        hidden = self.hidden[:num_tokens]
        return hidden if wanted is None else hidden.index_select(0, wanted)


class StepGraphs:
    """Runs the layers of a model, where that is possible by replaying captured steps.

    A step with one token of each sequence is captured whole, any other in pieces between its attention layers, which
    are called anew: their work depends on the lengths. Steps are padded up to the next size that was captured. Padding
    has no slot in the cache and attends to nothing.

    Args:
        model: whose weights stay where they are for as long as this object is used.
        plan: what is captured, and when.
        block_tables: ``[max_num_seqs, max_blocks]`` of each KV cache group: their shapes are what counts.
        kv_caches, group_of_layer: as of ``AttentionContext``; they stay where they are, too.
        longest: tokens that a sequence may have.
        use: is told what becomes of each step.
    """

    def __init__(
        self,
        model: CausalLM,
        plan: GraphPlan,
        block_tables: Sequence[np.ndarray],
        kv_caches: list[KVCache],
        group_of_layer: list[int],
        longest: int,
        use: GraphUse,
        device: torch.device,
    ) -> None:
        self._model = model
        self._plan = plan
        self._sizes = {FULL: plan.full, PIECEWISE: plan.pieces}
        self._kv_caches = kv_caches
        self._group_of_layer = group_of_layer
        self._longest = longest
        self._use = use
        self._pool = GraphPool(device)
        x = torch.zeros(max(plan.pieces, default=0), model.embedding.size, dtype=model.dtype, device=device)
        self._of_pieces = StaticInputs(x, len(block_tables))
        most = max(plan.full, default=0)
        self._of_whole = StagedMemory(block_tables, most, kv_caches, group_of_layer, longest, device)
        self._captured: dict[Hashable, _Captured] = {}
        # The largest first: smaller ones fit into their memory.
        wanted = [(kind, size) for kind, sizes in self._sizes.items() for size in sizes]
        self._left = sorted(wanted, key=lambda one: one[1])
        self.when_needed = False
        """Whether a step whose size is not captured yet may take the time to do that."""

    @property
    def at_start(self) -> bool:
        """Whether there is something to be captured before the engine is ready."""
        return bool(self._left) and not self._plan.after_ready

    def home(self, num_seqs: int) -> StagedHome | None:
        """As of ``ForwardGraphs``: of a step that is captured whole."""
        size = size_for(self._sizes[FULL], num_seqs)
        captured = None if size is None else self._captured.get(self._key(FULL, size))
        return None if captured is None or captured.inputs is None else captured.inputs.home(num_seqs)

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, given: GivenEmbeds | None = None
    ) -> Tensor:
        """As ``CausalLM.forward``. The result holds until the next call."""
        count = len(input_ids)
        kind, size = self._kind_and_size(count, ctx, given)
        captured = None if size is None else self._captured.get(self._key(kind, size))
        if captured is None and size is not None and self.when_needed:
            captured = self._get(kind, size)
        if captured is None:
            self._use.count("NONE", count, count)
            return self._model.forward(input_ids, positions, ctx, given)
        self._use.count(kind, count, len(captured.hidden))
        if captured.inputs is None:
            self._of_pieces.fill(self._model.embed(input_ids, given), positions, ctx.slot_mappings)
            captured.context.metadata, captured.context.num_tokens = ctx.metadata, count
        elif ctx.metadata is not captured.context.metadata:
            captured.inputs.fill(input_ids, positions, ctx)
        return captured.replay(count, ctx.wanted)

    @property
    def pending(self) -> bool:
        """Whether there is anything left to capture."""
        return bool(self._left)

    @torch.inference_mode()
    def capture_next(self) -> None:
        """Capture the largest of what is left."""
        kind, size = self._left.pop()
        if size in self._sizes[kind]:
            self._get(kind, size)

    def count(self) -> dict[str, int]:
        """How many steps are captured, whole and in pieces."""
        whole = sum(one.inputs is not None for one in self._captured.values())
        return {FULL: whole, PIECEWISE: len(self._captured) - whole}

    def memory_in_use(self) -> int:
        """Bytes of the device that are taken, by whomever."""
        return self._pool.memory_in_use()

    def _kind_and_size(
        self, num_tokens: int, ctx: AttentionContext, given: GivenEmbeds | None
    ) -> tuple[str, int | None]:
        # A whole step begins with its embedding. One that is at home has as many sequences as its graph, with padding.
        if given is None and num_tokens <= len(ctx.metadata[0].seq_lens_host):
            size = size_for(self._sizes[FULL], num_tokens)
            if size is not None:
                return FULL, size
        return PIECEWISE, size_for(self._sizes[PIECEWISE], num_tokens)

    def _key(self, kind: str, size: int) -> Hashable:
        return kind, size, batch_invariance.enabled()

    def _get(self, kind: str, size: int) -> _Captured | None:
        """The captured step, made now if it was not before; None when that cannot be."""
        key = self._key(kind, size)
        if key in self._captured:
            return self._captured[key]
        try:
            captured = self._capture_whole(size) if kind == FULL else self._capture_pieces(size)
        except (NotCapturable, torch.OutOfMemoryError) as reason:
            kept = tuple(size for size in self._sizes[kind] if self._key(kind, size) in self._captured)
            logger.warning(
                "A %s graph of size %d cannot be captured, so steps go without this kind, except for sizes %s: %s",
                kind,
                size,
                list(kept) or "none",
                reason,
            )
            self._sizes[kind] = kept
            return None
        self._captured[key] = captured
        return captured

    def _capture_whole(self, size: int) -> _Captured:
        inputs = self._of_whole.inputs(size)
        graph, hidden = self._pool.capture(
            lambda: self._model.forward(inputs.ids, inputs.positions, inputs.context),
            num_warmups=1 + self._plan.num_warmups,
        )
        return _Captured(inputs.context, graph, hidden, inputs)

    def _capture_pieces(self, size: int) -> _Captured:
        # The step before may still be there, and its tokens' places in the cache.
        self._of_pieces.clear()
        context = AttentionContext(
            metadata=self._of_pieces.no_sequences(),
            slot_mappings=self._of_pieces.slot_mappings(size),
            group_of_layer=self._group_of_layer,
            kv_caches=self._kv_caches,
        )
        x, positions = self._of_pieces.x[:size], self._of_pieces.positions[:size]

        def in_pieces(pieces: Pieces) -> Tensor:
            context.pieces = pieces
            return self._model.decode(x, positions, context)

        graph, hidden = self._pool.capture_pieces(in_pieces, num_warmups=1 + self._plan.num_warmups)
        context.pieces = Pieces()  # what was recorded is in the graph
        return _Captured(context, graph, hidden)
