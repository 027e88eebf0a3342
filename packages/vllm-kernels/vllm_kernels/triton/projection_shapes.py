"""Projections of models: the shapes for which products of few rows are compiled ahead of time, and tuned."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vllm_kernels.linear_weight import Activation
from vllm_kernels.triton.kernel import FLOATS, pointer, power_of_two
from vllm_kernels.triton.tuning import ShapeClass

FIELDS = ("out", "x_bits", "gated")
"""Of shape classes: columns of the result (see ``class_of``), bits of activations, whether there is a gate."""
SMALLEST, LARGEST = 1024, 65536
"""Classes of columns: powers of two from here to here."""


def class_of(out_features: int, dtype: torch.dtype, activation: Activation | None) -> dict[str, int]:
    """The class of a product, whose result has ``out_features`` columns."""
    out = min(power_of_two(out_features, SMALLEST), LARGEST)
    return {"out": out, "x_bits": 8 * dtype.itemsize, "gated": int(activation is not None)}


@dataclass(frozen=True, slots=True)
class Projection:
    """Of a model: columns of its result and of activations, and what comes with them.

    ``norm``: activations are normalised first, ``plus_one`` by weights that count from 1. ``residual`` is added.
    ``head``: the result is fp32.
    """

    out_features: int
    in_features: int
    activation: Activation | None = None
    norm: bool = False
    plus_one: bool = False
    residual: bool = False
    head: bool = False


PROJECTIONS = (
    # Qwen 3 0.6B
    Projection(4096, 1024, norm=True),
    Projection(1024, 2048, residual=True),
    Projection(3072, 1024, "silu", norm=True),
    Projection(1024, 3072, residual=True),
    Projection(151936, 1024, head=True),
    # Llama 8B
    Projection(6144, 4096, norm=True),
    Projection(4096, 4096, residual=True),
    Projection(14336, 4096, "silu", norm=True),
    Projection(4096, 14336, residual=True),
    Projection(128256, 4096, head=True),
    # Gemma 2 2B
    Projection(4096, 2304, norm=True, plus_one=True),
    Projection(2304, 2048),
    Projection(9216, 2304, "gelu_tanh"),
    # gpt-oss, and others' activation
    Projection(2880, 2880, "swigluoai", norm=True),
    Projection(3072, 1024, "gelu", norm=True),
)


def classes(family: str) -> list[ShapeClass]:
    """Of all that is compiled."""
    found = [class_of(each.out_features, dtype, each.activation) for each in PROJECTIONS for dtype in FLOATS]
    return [dict(values) for values in sorted({tuple(each.items()) for each in found})]


def compiled_types() -> Iterator[tuple[Projection, torch.dtype, dict[str, str | None]]]:
    """For each type of activations, each projection and what may come with it: the types of tensor arguments."""
    for dtype, each in itertools.product(FLOATS, PROJECTIONS):
        kind = pointer(dtype)
        for normed, biased in itertools.product((False, True) if each.norm else (False,), (False, True)):
            yield (
                each,
                dtype,
                {
                    "x": kind,
                    "norm": kind if normed else None,
                    "weight": kind,
                    "bias": kind if biased else None,
                    "residual": kind if each.residual else None,
                    "out": "*fp32" if each.head else kind,
                },
            )
