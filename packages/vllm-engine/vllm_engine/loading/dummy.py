"""Random weights, for measuring and testing without a checkpoint."""

import torch
from torch import Tensor

from vllm_engine.layers.norm import LayerNorm, RMSNorm
from vllm_engine.layers.weights import WeightedModule
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops.linear import fill

_POOL_SIZE = 1_000_003  # prime, so that rows of a matrix do not repeat each other
_BOUND = 0.035  # uniform, with the standard deviation of 0.02 that models are usually initialised with


@torch.no_grad()
def fill_with_random_weights(model: CausalLM, seed: int) -> None:
    """Small random values, the same for the same seed and shapes; norms scale by one.

    Drawing billions of numbers takes minutes, so a million are drawn once and laid end to end.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    numbers = torch.empty(_POOL_SIZE, device="cpu").uniform_(-_BOUND, _BOUND, generator=generator)
    pool = _Pool(numbers.to(model.dtype).to(model.device))
    for module in model.modules():
        if isinstance(module, RMSNorm | LayerNorm):
            module.fill_identity()
            continue
        if isinstance(module, WeightedModule) and isinstance(module.weight, LinearWeight):
            _fill_rows(module.weight, pool)
        for parameter in module.parameters(recurse=False):
            for piece in parameter.data.view(-1).split(_POOL_SIZE):
                piece.copy_(pool.take(piece.numel()))


def _fill_rows(weight: LinearWeight, pool: "_Pool") -> None:
    step = max(1, _POOL_SIZE // weight.in_features)
    for start in range(0, weight.out_features, step):
        count = min(step, weight.out_features - start)
        fill(weight, pool.take(count * weight.in_features).view(count, weight.in_features), start)


class _Pool:
    """Numbers that are given out round and round."""

    def __init__(self, numbers: Tensor) -> None:
        # Twice, so that every piece is in one piece.
        self._numbers = torch.cat((numbers, numbers))
        self._start = 0

    def take(self, count: int) -> Tensor:
        """The next ``count``, at most as many as there are."""
        piece = self._numbers[self._start : self._start + count]
        self._start = (self._start + count) % (len(self._numbers) // 2)
        return piece
