"""How much memory captured graphs will take, which must be known before the KV cache takes the rest."""

from vllm_engine.config.graph_plan import GraphPlan

BYTES_PER_LAYER = 128 * 2**10
"""Of one layer of one captured step: a driver keeps the launches of its kernels, some ten to twenty, on the device.

Nobody has measured this for these kernels. It is meant to be too much rather than too little: 134 captured steps of 32
layers count for half a GiB. The log says what they took in the end.
"""


def graph_bytes(plan: GraphPlan | None, *, num_layers: int, activations: int, num_tokens: int) -> int:
    """Bytes of all graphs of a plan, and of the one memory for activations that they share.

    Args:
        plan: None where nothing is captured.
        num_layers: of the model.
        activations: bytes of those of a step of ``num_tokens`` tokens; they grow with it.
    """
    if plan is None:
        return 0
    largest = max((*plan.full, *plan.pieces), default=0)
    launches = (len(plan.full) + len(plan.pieces)) * num_layers * BYTES_PER_LAYER
    return launches + activations * min(largest, num_tokens) // num_tokens
