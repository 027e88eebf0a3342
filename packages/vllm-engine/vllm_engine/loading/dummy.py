"""Random weights, for measuring and testing without a checkpoint."""

import torch
from torch import Tensor, nn

from vllm_engine.layers.norm import LayerNorm, RMSNorm

_POOL_SIZE = 1_000_003  # prime, so that rows of a matrix do not repeat each other
_BOUND = 0.035  # uniform, with the standard deviation of 0.02 that models are usually initialised with


@torch.no_grad()
def fill_with_random_weights(model: nn.Module, seed: int) -> None:
    """Small random values, the same for the same seed and shapes; norms scale by one.

    Drawing billions of numbers takes minutes, so a million are drawn once and laid end to end.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    pool = torch.empty(_POOL_SIZE, device="cpu").uniform_(-_BOUND, _BOUND, generator=generator)
    start = 0
    for module in model.modules():
        if isinstance(module, RMSNorm | LayerNorm):
            module.fill_identity()
            continue
        for parameter in module.parameters(recurse=False):
            start = _lay_out(parameter.data.view(-1), pool.to(parameter.device, parameter.dtype), start)


def _lay_out(flat: Tensor, pool: Tensor, start: int) -> int:
    """Fill ``flat`` with the pool from ``start`` on, round and round; returns where it stopped."""
    filled = 0
    while filled < flat.numel():
        piece = pool[start : start + flat.numel() - filled]
        flat[filled : filled + piece.numel()] = piece
        filled += piece.numel()
        start = (start + piece.numel()) % pool.numel()
    return start
