"""``CompiledLayers``: what lies between the kernels of a model, compiled by torch."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from vllm_engine.config.compiler import Backend
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM

logger = get_logger(__name__)


class CompiledLayers:
    """Lets a model's layers be compiled when they are first called, and again for what they were not compiled for.

    The compiler sees nothing of our kernels: each call of one ends a graph, and the next begins after it. As what takes
    time is in kernels, that leaves it views, rows that are picked, and the odd product.

    Args:
        model: whose ``decode`` is replaced.
        backend: what compiles graphs; ``eager`` runs them as they were traced.
        cache_dir: folder in which ``inductor`` keeps what it compiled; its own where that is empty.
    """

    def __init__(self, model: CausalLM, backend: Backend, cache_dir: str = "") -> None:
        if cache_dir:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache_dir  # read when the first graph is compiled
        self._backend = backend
        self._started = time.perf_counter()
        self.num_graphs = self.num_operators = 0
        """Compiled so far, and how many operators are in them."""
        _leave_kernels_alone()
        compiled = torch.compile(model.decode, backend=self._compile, dynamic=True)
        model.decode = compiled  # type: ignore[method-assign]

    def tell(self) -> None:
        """Say in the log what was compiled until now, and how long that and the first steps took."""
        logger.info(
            "torch.compile (%s): %d graphs with %d operators between kernels, %.1f s with the first steps",
            self._backend,
            self.num_graphs,
            self.num_operators,
            time.perf_counter() - self._started,
        )

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        """A backend of ``torch.compile``: what calls the graph."""
        from torch._dynamo import lookup_backend

        self.num_graphs += 1
        self.num_operators += sum(node.op.startswith("call_") for node in graph.graph.nodes)
        compiled: Callable[..., Any] = lookup_backend(self._backend)(graph, inputs)
        return compiled


def _leave_kernels_alone() -> None:
    """Let the compiler end a graph at each call of a kernel.

    ``torch.compiler.disable`` would do that for a function, but costs a second when it is imported, compiled or not.
    """
    from torch._dynamo import trace_rules

    trace_rules.add("vllm_kernels")  # type: ignore[no-untyped-call,unused-ignore]
