"""Which graphs a device's steps go through, if any."""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vllm_engine.config import EngineConfig
from vllm_engine.config.compiler import compiler_backend
from vllm_engine.config.graph_plan import plan_graphs
from vllm_engine.execution.decode_graphs import DecodeGraphs
from vllm_engine.execution.graph_use import GraphUse
from vllm_engine.execution.step_graphs import StepGraphs
from vllm_engine.execution.step_home import StepHome
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import GivenEmbeds
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.ops.cache import KVCache

logger = get_logger(__name__)


class ForwardGraphs(Protocol):
    """What the runner, and who captures at start, need of graphs."""

    def home(self, num_seqs: int) -> StepHome | None:
        """Where a step of one token of each sequence may be written straight away; ``forward`` must be given just that
        next, and nothing in the place of an embedding."""
        ...

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, given: GivenEmbeds | None = None
    ) -> Tensor:
        """As ``CausalLM.forward``. The result holds until the next call."""
        ...

    when_needed: bool
    """Whether a step may take the time to capture what it needs."""

    @property
    def at_start(self) -> bool:
        """Whether there is something to be captured before the engine is ready."""
        ...

    @property
    def pending(self) -> bool:
        """Whether there is something to be captured before a step needs it."""
        ...

    def capture_next(self) -> None:
        """Capture one of those that are pending."""
        ...

    def count(self) -> dict[str, int]:
        """How many steps are captured, by their kind."""
        ...

    def memory_in_use(self) -> int:
        """Bytes of the device that are taken, by whomever; 0 where graphs take none to speak of."""
        ...


def capture_all(graphs: ForwardGraphs) -> None:
    """Capture all that is pending, and say so in the log."""
    before, started = graphs.memory_in_use(), time.perf_counter()
    while graphs.pending:
        graphs.capture_next()
    logger.info(
        "captured steps: %s in %.1f s, which take %.2f GiB",
        ", ".join(f"{count} {kind}" for kind, count in graphs.count().items()),
        time.perf_counter() - started,
        (graphs.memory_in_use() - before) / 2**30,
    )


def graphs_for(
    config: EngineConfig,
    model: CausalLM,
    block_tables: Sequence[np.ndarray],
    kv_caches: list[KVCache],
    group_of_layer: list[int],
    longest: int,
    device: torch.device,
) -> ForwardGraphs | None:
    """The graphs that the settings ask for; None where every step runs call by call.

    Args:
        model, kv_caches: which stay where they are.
        block_tables: ``[max_num_seqs, max_blocks]`` of each KV cache group.
        group_of_layer: as of ``AttentionContext``.
        longest: tokens that a sequence may have.
    """
    use = GraphUse(config.observability.cudagraph_metrics)
    if config.device.kind == "cpu":
        # A recorder of native kernels would miss what a compiler wrote.
        eager = config.model.enforce_eager or compiler_backend(config) is not None
        return None if eager else DecodeGraphs(model, block_tables, device, use)
    plan = plan_graphs(config, len(block_tables[0]))
    if plan is None:
        return None
    return StepGraphs(model, plan, block_tables, kv_caches, group_of_layer, longest, use, device)
