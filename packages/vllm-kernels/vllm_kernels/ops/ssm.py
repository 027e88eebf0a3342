"""State-space layers of Mamba 2 (arXiv:2405.21060): a causal convolution of few taps, and a recurrence.

Both keep a state for each sequence, in a *slot*. Prompts and pieces of them take ``causal_conv1d`` and ``chunk_scan``,
with several sequences one after the other; steps with one token of each sequence take the functions named ``update``.
A slot outside of the state (-1, say, for a row that fills up a batch) is none: history is zeros and nothing is kept.
Each slot may occur once in a call.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape

ConvActivation = Literal["silu"]


@dataclass(slots=True, eq=False)
class SSMMetadata:
    """Which tokens of a step belong to which sequence, and where its states are. It serves all layers of the step.

    Args:
        query_start_loc: ``[num_seqs + 1]``, int32: tokens ``query_start_loc[i]`` to ``query_start_loc[i + 1]`` are
            sequence ``i``'s.
        state_slots: ``[num_seqs]``, int32: slot of each sequence.
        has_initial_state: ``[num_seqs]``, bool: whether the slot holds what was before these tokens; else zeros were.
        query_lens_host: tokens of each sequence, as Python integers.
        plans: what a face works out once per step. Faces only.
    """

    query_start_loc: torch.Tensor
    state_slots: torch.Tensor
    has_initial_state: torch.Tensor
    query_lens_host: list[int]
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    metadata: SSMMetadata,
    activation: ConvActivation | None = "silu",
) -> torch.Tensor:
    """``activation(bias[c] + sum over i of weight[c, i] * x[t - width + 1 + i, c])``, within each sequence.

    What lies before a sequence's first token is in its state, which is written anew: its last ``width - 1`` inputs.

    Args:
        x: ``[num_tokens, channels]``, floating point.
        weight: ``[channels, width]``, dtype of ``x``; width at least 2.
        bias: ``[channels]``, dtype of ``x``, or None.
        state: ``[num_slots, channels, width - 1]``, contiguous, floating point: inputs, oldest first.
        metadata: of the step.
        activation: ``"silu"`` or None.

    Returns:
        ``[num_tokens, channels]``, dtype of ``x``; summed in fp32 (fp64 for fp64).

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
    """
    _check_conv(x, weight, bias, state, activation)
    _check_metadata(metadata, len(x))
    result: torch.Tensor = face_of("ssm", x.device).causal_conv1d(x, weight, bias, state, metadata, activation)
    return result


def causal_conv1d_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    activation: ConvActivation | None = "silu",
) -> torch.Tensor:
    """The same for one further token of each sequence.

    Args:
        x: ``[num_seqs, channels]``, floating point.
        weight, bias, state, activation: as of ``causal_conv1d``.
        state_slots: ``[num_seqs]``, int32.

    Returns:
        ``[num_seqs, channels]``, dtype of ``x``.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_conv(x, weight, bias, state, activation)
    check_shape("state_slots", state_slots, (len(x),))
    check_dtype("state_slots", state_slots, torch.int32)
    result: torch.Tensor = face_of("ssm", x.device).causal_conv1d_update(
        x, weight, bias, state, state_slots, activation
    )
    return result


def selective_state_update(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    *,
    d: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
) -> torch.Tensor:
    """One further token of each sequence: its state decays, takes the token in, and is read.

    For each head ``h`` of group ``g = h // (num_heads // num_groups)``, with ``step = clamp(softplus(dt + dt_bias))``::

        state = exp(step * a) * state + step * x[:, None] * b[g]
        out = (state @ c[g] + d * x) * silu(z)

    Args:
        x: ``[num_seqs, num_heads, head_dim]``, floating point.
        dt: ``[num_seqs, num_heads]``, floating point.
        a: ``[num_heads]``, floating point, negative in a trained model.
        b, c: ``[num_seqs, num_groups, state_size]``, dtype of ``x``.
        state: ``[num_slots, num_heads, head_dim, state_size]``, contiguous, floating point. It is rounded to its dtype
            after it was read.
        state_slots: ``[num_seqs]``, int32.
        d: ``[num_heads]``, floating point, or None for zeros.
        z: ``[num_seqs, num_heads, head_dim]``, dtype of ``x``, or None without a gate.
        dt_bias: ``[num_heads]``, floating point, or None for zeros.
        dt_softplus: whether ``softplus`` is taken.
        dt_limit: least and greatest step.

    Returns:
        ``[num_seqs, num_heads, head_dim]``, dtype of ``x``; all is computed in fp32 (fp64 for fp64).

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_scan(x, dt, a, b, c, state, d, z, dt_bias, dt_limit)
    check_shape("state_slots", state_slots, (len(x),))
    check_dtype("state_slots", state_slots, torch.int32)
    result: torch.Tensor = face_of("ssm", x.device).selective_state_update(
        x, dt, a, b, c, state, state_slots, d, z, dt_bias, dt_softplus, dt_limit
    )
    return result


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    metadata: SSMMetadata,
    *,
    d: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
) -> torch.Tensor:
    """``selective_state_update`` of all tokens of each sequence, one after the other, computed in chunks of them.

    The size of a chunk is the face's choice: the result is the same but for rounding. Factors of products are rounded
    to the dtype of ``x``, sums are fp32 (fp64 for fp64).

    Args:
        x: ``[num_tokens, num_heads, head_dim]``, and so the other inputs: tokens in place of sequences.
        state: as of ``selective_state_update``: read where a sequence has an initial state, and written with its last.
        metadata: of the step.
        d, z, dt_bias, dt_softplus, dt_limit: as of ``selective_state_update``.

    Returns:
        ``[num_tokens, num_heads, head_dim]``, dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
    """
    _check_scan(x, dt, a, b, c, state, d, z, dt_bias, dt_limit)
    _check_metadata(metadata, len(x))
    result: torch.Tensor = face_of("ssm", x.device).chunk_scan(
        x, dt, a, b, c, state, metadata, d, z, dt_bias, dt_softplus, dt_limit
    )
    return result


def _check_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, state: torch.Tensor, activation: str | None
) -> None:
    check_shape("x", x, (None, None))
    check_floating("x", x)
    channels = x.shape[1]
    check_shape("weight", weight, (channels, None))
    check_dtype("weight", weight, x.dtype)
    width = weight.shape[1]
    if width < 2:
        raise ValueError(f"weight must have a width of at least 2, got {width}")
    if bias is not None:
        check_shape("bias", bias, (channels,))
        check_dtype("bias", bias, x.dtype)
    check_shape("state", state, (None, channels, width - 1))
    _check_state(state)
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")


def _check_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
) -> None:
    check_shape("x", x, (None, None, None))
    check_floating("x", x)
    rows, heads, head_dim = x.shape
    check_shape("dt", dt, (rows, heads))
    check_floating("dt", dt)
    check_shape("b", b, (rows, None, None))
    groups, size = b.shape[1:]
    if groups < 1 or heads % groups:
        raise ValueError(f"b must have a number of groups that divides {heads} heads, got {groups}")
    check_shape("c", c, (rows, groups, size))
    check_shape("state", state, (None, heads, head_dim, size))
    _check_state(state)
    for name, tensor in (("b", b), ("c", c)):
        check_dtype(name, tensor, x.dtype)
    if z is not None:
        check_shape("z", z, (rows, heads, head_dim))
        check_dtype("z", z, x.dtype)
    for name, per_head in (("a", a), ("d", d), ("dt_bias", dt_bias)):
        if per_head is not None:
            check_shape(name, per_head, (heads,))
            check_floating(name, per_head)
    if not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit must be the least and the greatest step, got {dt_limit}")


def _check_state(state: torch.Tensor) -> None:
    check_floating("state", state)
    if not state.is_contiguous():
        raise ValueError("state must be contiguous")


def _check_metadata(metadata: SSMMetadata, num_tokens: int) -> None:
    num_seqs = len(metadata.query_lens_host)
    check_shape("query_start_loc", metadata.query_start_loc, (num_seqs + 1,))
    check_dtype("query_start_loc", metadata.query_start_loc, torch.int32)
    check_shape("state_slots", metadata.state_slots, (num_seqs,))
    check_dtype("state_slots", metadata.state_slots, torch.int32)
    check_shape("has_initial_state", metadata.has_initial_state, (num_seqs,))
    check_dtype("has_initial_state", metadata.has_initial_state, torch.bool)
    if sum(metadata.query_lens_host) != num_tokens:
        raise ValueError(f"metadata is of {sum(metadata.query_lens_host)} tokens, but x has {num_tokens}")
