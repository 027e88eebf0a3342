"""Low-rank adapters (LoRA, arXiv:2106.09685), many of them in one batch (arXiv:2310.18547, arXiv:2311.03285).

A projection's result gets ``scale * B (A x)``, where each token has A and B of its own adapter. Merged projections
(query, key and value) have *slices*: each with its own A of the same input, and its own B for its part of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """Places for the adapters of one projection. ``allocate_lora_weights`` makes it, ``store_adapter`` fills a place.

    Args:
        a: ``[num_adapters, num_slices, max_rank, in_features]``, contiguous.
        b: ``[num_adapters, out_features, max_rank]``, contiguous; the rows of the slices stand one below the other.
        ranks: ``[num_adapters, num_slices]``, int32: what of A's rows and B's columns is in use; 0: the adapter leaves
            this slice as it is. The rest is never read.
        scales: ``[num_adapters, num_slices]``, fp32.
        slice_starts: ``[num_slices + 1]``, int32: columns ``slice_starts[i]`` to ``slice_starts[i + 1]`` of the result
            are slice ``i``'s.
        slice_sizes: the same as Python integers, columns of each.
        ranks_host: ``ranks`` as Python integers.
    """

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor
    slice_starts: torch.Tensor
    slice_sizes: tuple[int, ...]
    ranks_host: list[list[int]]

    @property
    def num_adapters(self) -> int:
        """Places."""
        return self.a.shape[0]

    @property
    def max_rank(self) -> int:
        """The highest rank that there is room for."""
        return self.a.shape[2]

    @property
    def in_features(self) -> int:
        """Columns of the input."""
        return self.a.shape[3]

    @property
    def out_features(self) -> int:
        """Columns of the result, of all slices."""
        return self.b.shape[1]


@dataclass(slots=True, eq=False)
class LoRAMetadata:
    """Which adapter each token of a step has. The same object serves all projections of the step.

    Args:
        adapters_host: for each token its adapter's place, or -1 for none.
        num_adapters: places, as many as the weights have.
        plans: what a face works out once per step. Faces only.

    Raises:
        ValueError: ``adapters_host`` has a place that does not exist.
    """

    adapters_host: list[int]
    num_adapters: int
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for adapter in set(self.adapters_host):
            if not -1 <= adapter < self.num_adapters:
                raise ValueError(f"adapters_host must be from -1 to {self.num_adapters - 1}, got {adapter}")

    def refill(self, step: "LoRAMetadata") -> None:
        """Take over the contents of another step, in the same memory: a captured graph reads them there.

        Raises:
            ValueError: the step has another number of tokens or of places.
        """
        if (len(step.adapters_host), step.num_adapters) != (len(self.adapters_host), self.num_adapters):
            raise ValueError("a step must have as many tokens and adapters as the one it follows")
        self.adapters_host[:] = step.adapters_host
        for plan in self.plans.values():
            plan.refill(self)


def allocate_lora_weights(
    num_adapters: int,
    slice_sizes: Sequence[int],
    max_rank: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> LoRAWeights:
    """Places for adapters of one projection, all of them empty.

    Args:
        num_adapters: that can be used in the same step.
        slice_sizes: columns of the result that each slice has; one number for a projection that is not merged.
        max_rank: the highest rank of an adapter.
        in_features: of the projection.
        dtype: of the adapters, of the activations that they meet, and of the results.
        device: where they live; None for the one that torch takes by default.

    Raises:
        ValueError: a size below 1, no slices, or a type that is not floating point.
    """
    sizes = {"num_adapters": num_adapters, "max_rank": max_rank, "in_features": in_features}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not slice_sizes or min(slice_sizes) < 1:
        raise ValueError(f"slice_sizes must be one or more numbers of at least 1, got {list(slice_sizes)}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    num_slices = len(slice_sizes)
    starts = [sum(slice_sizes[:count]) for count in range(num_slices + 1)]
    return LoRAWeights(
        torch.zeros(num_adapters, num_slices, max_rank, in_features, dtype=dtype, device=device),
        torch.zeros(num_adapters, starts[-1], max_rank, dtype=dtype, device=device),
        torch.zeros(num_adapters, num_slices, dtype=torch.int32, device=device),
        torch.zeros(num_adapters, num_slices, dtype=torch.float32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        tuple(slice_sizes),
        [[0] * num_slices for _ in range(num_adapters)],
    )


def store_adapter(
    weights: LoRAWeights,
    adapter: int,
    slices: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
    scale: float | Sequence[float],
) -> None:
    """Put an adapter in a place, over what was there. Not while a step that uses the place is under way.

    Args:
        weights: of the projection.
        adapter: the place.
        slices: for each slice A ``[rank, in_features]`` and B ``[slice_size, rank]``, floating point, or None where the
            adapter leaves it as it is; None for each empties the place.
        scale: ``lora_alpha / rank``, say, of all slices or for each.

    Raises:
        ValueError: the place does not exist; number of slices, shapes, dtypes or ranks do not fit.
    """
    num_slices = len(weights.slice_sizes)
    if not 0 <= adapter < weights.num_adapters:
        raise ValueError(f"adapter must be from 0 to {weights.num_adapters - 1}, got {adapter}")
    scales = [float(scale)] * num_slices if isinstance(scale, int | float) else list(scale)
    for name, count in (("slices", len(slices)), ("scale", len(scales))):
        if count != num_slices:
            raise ValueError(f"{name} must be of {num_slices} slices, got {count}")
    ranks = [0] * num_slices
    for number, pair in enumerate(slices):
        if pair is not None:
            ranks[number] = _checked_rank(weights, number, *pair)
    start = 0
    for number, pair in enumerate(slices):
        end = start + weights.slice_sizes[number]
        if pair is not None:
            weights.a[adapter, number, : ranks[number]] = pair[0]
            weights.b[adapter, start:end, : ranks[number]] = pair[1]
        start = end
    weights.ranks[adapter] = torch.tensor(ranks, dtype=torch.int32)
    weights.scales[adapter] = torch.tensor(scales)
    weights.ranks_host[adapter] = ranks


def lora_shrink(x: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> torch.Tensor:
    """``A x`` of each token, slice by slice, with A of the token's adapter.

    Args:
        x: ``[num_tokens, in_features]``, dtype of the weights.
        weights: of the projection.
        metadata: of the step.

    Returns:
        fp32 (fp64 for fp64) ``[parts, num_slices, num_tokens, max_rank]``, to be added up over the first dimension: the
        columns of ``x`` may be cut into as many parts as the face likes. What lies beyond a rank, and tokens without
        an adapter, may hold anything. The same call gives the same bits every time.

    Raises:
        ValueError: shapes, dtypes or the number of tokens do not fit.
    """
    check_shape("x", x, (None, weights.in_features))
    check_dtype("x", x, weights.a.dtype)
    _check_metadata(metadata, weights, len(x))
    result: torch.Tensor = face_of("lora", x.device).lora_shrink(x, weights, metadata)
    return result


def lora_expand(out: torch.Tensor, low: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> None:
    """``out += scale * B low`` in place, for each token and slice, with B and scale of the token's adapter.

    ``low`` is rounded to the dtype of ``out`` first; the product is summed in fp32 (fp64 for fp64), and its sum with
    ``out`` rounded once. Tokens without an adapter and slices that it leaves as they are keep their bits.

    Args:
        out: ``[num_tokens, out_features]``, dtype of the weights; its rows are contiguous.
        low: of ``lora_shrink``.
        weights: of the projection.
        metadata: of the step.

    Raises:
        ValueError: shapes, dtypes, strides or the number of tokens do not fit.
    """
    check_shape("out", out, (None, weights.out_features))
    check_dtype("out", out, weights.b.dtype)
    if out.stride(1) != 1 and out.shape[1] > 1:
        raise ValueError(f"out must have contiguous rows, got strides {out.stride()}")
    check_shape("low", low, (None, len(weights.slice_sizes), len(out), weights.max_rank))
    check_dtype("low", low, torch.promote_types(out.dtype, torch.float32))
    _check_metadata(metadata, weights, len(out))
    face_of("lora", out.device).lora_expand(out, low, weights, metadata)


def _checked_rank(weights: LoRAWeights, number: int, a: torch.Tensor, b: torch.Tensor) -> int:
    for name, tensor in (("A", a), ("B", b)):
        check_floating(f"{name} of slice {number}", tensor)
    check_shape(f"A of slice {number}", a, (None, weights.in_features))
    rank = len(a)
    if not 1 <= rank <= weights.max_rank:
        raise ValueError(f"A of slice {number} must have a rank from 1 to {weights.max_rank}, got {rank}")
    check_shape(f"B of slice {number}", b, (weights.slice_sizes[number], rank))
    return rank


def _check_metadata(metadata: LoRAMetadata, weights: LoRAWeights, num_tokens: int) -> None:
    if len(metadata.adapters_host) != num_tokens:
        raise ValueError(f"metadata must be of {num_tokens} tokens, got {len(metadata.adapters_host)}")
    if metadata.num_adapters != weights.num_adapters:
        raise ValueError(f"metadata must be of {weights.num_adapters} adapters, got {metadata.num_adapters}")
