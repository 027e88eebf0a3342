"""What the weights of all kinds of layers have in common: memory that somebody may want to measure, move or drop."""

from collections.abc import Iterator

import torch


class Weight:
    """A layer's weight in the layout of its face.

    All of its numbers are in tensors that are attributes of the object, or of weights that are, or in lists of either.
    """

    def tensors(self) -> Iterator[torch.Tensor]:
        """The tensors that hold it, each once."""
        seen: set[int] = set()
        for value in vars(self).values():
            for tensor in _tensors_in(value):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in self.tensors())


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Weight):
        yield from value.tensors()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
