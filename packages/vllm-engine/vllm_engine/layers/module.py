"""The base of modules whose call gives one tensor."""

from collections.abc import Callable

from torch import Tensor, nn


class TensorModule(nn.Module):
    """``nn.Module`` tells a type checker nothing about what a call returns; this one says it is a tensor."""

    __call__: Callable[..., Tensor]
