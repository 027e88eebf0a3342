"""The recurrence of Mamba 2, see ``ops.ssm``.

A prompt is cut into chunks. A chunk's own share of its last state is a product (``chunk_state_kernel``), states are
passed on from chunk to chunk (``pass_states_kernel``), and a chunk's results come from the state that it begins with
and from its own tokens, as in attention with weights that decay (``chunk_scan_kernel``). Scores of a group are computed
for each of its heads: as many bytes would have to be read if they were kept.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from vllm_kernels.eager import ssm as eager
from vllm_kernels.ops.ssm import SSMMetadata
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.ssm_conv import causal_conv1d, causal_conv1d_update
from vllm_kernels.triton.ssm_plan import tiles_for

__all__ = ["causal_conv1d", "causal_conv1d_update", "chunk_scan", "selective_state_update"]

ELEMENTS = 1024
"""Of a state, in a program that passes it on."""
BLOCK_T = 64
"""Tokens of a tile of results."""
STATE_WARPS = 8
"""For the share of a whole chunk in its state."""


@triton.jit
def softplus(x):
    """``log(1 + exp(x))``, also where ``1 + exp(x)`` has lost most of ``exp(x)``."""
    power = tl.exp(tl.where(x > 20.0, 20.0, x))
    above = 1.0 + power
    result = tl.where(above == 1.0, power, tl.log(above) * power / tl.where(above == 1.0, 1.0, above - 1.0))
    return tl.where(x > 20.0, x, result)


@triton.jit
def step_sizes(dt, dt_bias, head, low, high, SOFTPLUS: tl.constexpr):
    """``clamp(softplus(dt + dt_bias))`` of one head, for fp32 ``dt``."""
    if dt_bias is not None:
        dt += tl.load(dt_bias + head).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    # Not tl.minimum and tl.maximum, which drop NaN.
    dt = tl.where(dt < low, low, dt)
    return tl.where(dt > high, high, dt)


@triton.jit(do_not_specialize=["num_slots"])
def state_update_kernel(
    x,
    dt,
    a,
    b,
    c,
    state,
    slots,
    d,
    z,
    dt_bias,
    out,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    z_stride,
    num_slots,
    low,
    high,
    HEADS: tl.constexpr,
    EACH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_P rows of one head's state of one sequence: read once and written once. EACH heads are of a group."""
    wait_for_earlier(PDL)
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // EACH
    row = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    column = tl.arange(0, BLOCK_N)
    in_head = row < HEAD_DIM
    in_state = column < SIZE
    slot = tl.load(slots + seq).to(tl.int64)
    kept = row < tl.where((slot >= 0) & (slot < num_slots), HEAD_DIM, 0)
    place = ((slot * HEADS + head) * HEAD_DIM + row)[:, None] * SIZE + column[None, :]
    wanted = kept[:, None] & in_state[None, :]

    step = step_sizes(tl.load(dt + seq * dt_stride + head).to(tl.float32), dt_bias, head, low, high, SOFTPLUS)
    values = tl.load(x + seq * x_stride + head * HEAD_DIM + row, mask=in_head, other=0.0).to(tl.float32)
    taken = tl.load(b + seq * b_stride + group * SIZE + column, mask=in_state, other=0.0).to(tl.float32)
    read = tl.load(c + seq * c_stride + group * SIZE + column, mask=in_state, other=0.0).to(tl.float32)
    running = tl.load(state + place, mask=wanted, other=0.0).to(tl.float32)
    running = running * tl.exp(step * tl.load(a + head).to(tl.float32)) + (step * values)[:, None] * taken[None, :]
    tl.store(state + place, running.to(state.dtype.element_ty), mask=wanted)
    result = tl.sum(running * read[None, :], axis=1)
    if d is not None:
        result += tl.load(d + head).to(tl.float32) * values
    if z is not None:
        gate = tl.load(z + seq * z_stride + head * HEAD_DIM + row, mask=in_head, other=0.0).to(tl.float32)
        result = result * (gate * tl.sigmoid(gate))
    tl.store(out + (seq * HEADS + head) * HEAD_DIM + row, result.to(out.dtype.element_ty), mask=in_head)


@triton.jit
def chunk_state_kernel(
    x,
    dt,
    a,
    b,
    dt_bias,
    query_start_loc,
    chunk_seq,
    chunk_first,
    states,
    steps,
    exponents,
    x_stride,
    dt_stride,
    b_stride,
    low,
    high,
    HEADS: tl.constexpr,
    EACH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PDL: tl.constexpr,
):
    """What one chunk alone leaves in one head's state: fp32 ``states[chunk, head]``, ``[HEAD_DIM, SIZE]``.

    And fp32 ``steps[chunk, head]`` and ``exponents[chunk, head]``, ``[CHUNK]``: the sizes of the steps, zero for tokens
    that are not there, and the sums of ``step * a`` up to each token. ``exp`` of the last is left of the state before.
    """
    wait_for_earlier(PDL)
    chunk = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    seq = tl.load(chunk_seq + chunk).to(tl.int64)
    first = tl.load(query_start_loc + seq) + tl.load(chunk_first + chunk)
    local = tl.arange(0, CHUNK)
    present = local < tl.load(query_start_loc + seq + 1) - first
    first = first.to(tl.int64)
    row = tl.arange(0, BLOCK_P)
    column = tl.arange(0, BLOCK_N)
    step = tl.load(dt + first * dt_stride + head + local * dt_stride, mask=present, other=0.0).to(tl.float32)
    step = tl.where(present, step_sizes(step, dt_bias, head, low, high, SOFTPLUS), 0.0)
    exponent = tl.cumsum(step * tl.load(a + head).to(tl.float32), axis=0)
    # The last one, which tokens that are not there do not change.
    whole = tl.sum(tl.where(local == CHUNK - 1, exponent, 0.0), axis=0)
    tl.store(steps + (chunk * HEADS + head) * CHUNK + local, step)
    tl.store(exponents + (chunk * HEADS + head) * CHUNK + local, exponent)
    values = tl.load(
        x + first * x_stride + head * HEAD_DIM + (local[:, None] * x_stride + row[None, :]),
        mask=present[:, None] & (row < HEAD_DIM)[None, :],
        other=0.0,
    )
    taken = tl.load(
        b + first * b_stride + (head // EACH) * SIZE + (local[:, None] * b_stride + column[None, :]),
        mask=present[:, None] & (column < SIZE)[None, :],
        other=0.0,
    )
    weight = tl.exp(whole - exponent) * step
    weighted = (values.to(tl.float32) * weight[:, None]).to(values.dtype)
    result = tl.dot(tl.trans(weighted), taken, input_precision="ieee")
    tl.store(
        states + (chunk * HEADS + head) * (HEAD_DIM * SIZE) + (row[:, None] * SIZE + column[None, :]),
        result,
        mask=(row < HEAD_DIM)[:, None] & (column < SIZE)[None, :],
    )


@triton.jit(do_not_specialize=["num_slots"])
def pass_states_kernel(
    states,
    exponents,
    state,
    slots,
    has_initial,
    chunk_starts,
    num_slots,
    HEADS: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK of the ENTRIES of one head's state of a sequence: each chunk's becomes the one that it begins with."""
    wait_for_earlier(PDL)
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < ENTRIES
    begin = tl.load(chunk_starts + seq).to(tl.int64)
    end = tl.load(chunk_starts + seq + 1).to(tl.int64)
    slot = tl.load(slots + seq).to(tl.int64)
    kept = tl.where((slot >= 0) & (slot < num_slots), ENTRIES, 0)
    resumed = tl.where(tl.load(has_initial + seq) != 0, kept, 0)
    place = (slot * HEADS + head) * ENTRIES + entry
    running = tl.load(state + place, mask=entry < resumed, other=0.0).to(tl.float32)
    for chunk in range(begin, end):
        of_chunk = chunk * HEADS + head
        own = tl.load(states + of_chunk * ENTRIES + entry, mask=inside, other=0.0)
        tl.store(states + of_chunk * ENTRIES + entry, running, mask=inside)
        running = running * tl.exp(tl.load(exponents + of_chunk * CHUNK + CHUNK - 1)) + own
    # A sequence without tokens keeps what it has.
    tl.store(state + place, running.to(state.dtype.element_ty), mask=entry < tl.where(end > begin, kept, 0))


@triton.jit
def chunk_scan_kernel(
    x,
    b,
    c,
    d,
    z,
    query_start_loc,
    chunk_seq,
    chunk_first,
    states,
    steps,
    exponents,
    out,
    x_stride,
    b_stride,
    c_stride,
    z_stride,
    HEADS: tl.constexpr,
    EACH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_P results of BLOCK_T tokens of a chunk and head: from the state that it begins with, and its tokens.

    ``states``, ``steps`` and ``exponents`` are those of ``chunk_state_kernel``, after the states were passed on.
    """
    wait_for_earlier(PDL)
    chunk = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // EACH
    seq = tl.load(chunk_seq + chunk).to(tl.int64)
    first = tl.load(query_start_loc + seq) + tl.load(chunk_first + chunk)
    length = tl.load(query_start_loc + seq + 1) - first
    first = first.to(tl.int64)
    begin = tl.program_id(2) % (CHUNK // BLOCK_T) * BLOCK_T
    local = begin + tl.arange(0, BLOCK_T)
    present = local < length
    row = tl.program_id(2) // (CHUNK // BLOCK_T) * BLOCK_P + tl.arange(0, BLOCK_P)
    column = tl.arange(0, BLOCK_N)
    in_head = row < HEAD_DIM
    in_state = column < SIZE
    steps += (chunk * HEADS + head) * CHUNK
    exponents += (chunk * HEADS + head) * CHUNK
    states += (chunk * HEADS + head) * (HEAD_DIM * SIZE)
    x += first * x_stride + head * HEAD_DIM
    b += first * b_stride + group * SIZE

    read = tl.load(
        c + first * c_stride + group * SIZE + (local[:, None] * c_stride + column[None, :]),
        mask=present[:, None] & in_state[None, :],
        other=0.0,
    )
    before = tl.load(
        states + (row[None, :] * SIZE + column[:, None]), mask=in_head[None, :] & in_state[:, None], other=0.0
    )
    exponent = tl.load(exponents + local)
    result = tl.dot(read, before.to(read.dtype), input_precision="ieee") * tl.exp(exponent)[:, None]
    # Tokens beyond the sequence have steps of zero.
    for at in range(0, tl.minimum(begin + BLOCK_T, length), BLOCK_T):
        earlier = at + tl.arange(0, BLOCK_T)
        known = earlier < length
        taken = tl.load(
            b + (earlier[None, :] * b_stride + column[:, None]), mask=known[None, :] & in_state[:, None], other=0.0
        )
        values = tl.load(
            x + (earlier[:, None] * x_stride + row[None, :]), mask=known[:, None] & in_head[None, :], other=0.0
        )
        seen = local[:, None] >= earlier[None, :]
        left = tl.where(seen, exponent[:, None] - tl.load(exponents + earlier)[None, :], 0.0)
        weight = tl.dot(read, taken, input_precision="ieee") * tl.exp(left) * tl.load(steps + earlier)[None, :]
        weight = tl.where(seen, weight, 0.0)
        result += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    wanted = present[:, None] & in_head[None, :]
    if d is not None:
        values = tl.load(x + (local[:, None] * x_stride + row[None, :]), mask=wanted, other=0.0)
        result += tl.load(d + head).to(tl.float32) * values.to(tl.float32)
    if z is not None:
        gate = tl.load(
            z + first * z_stride + head * HEAD_DIM + (local[:, None] * z_stride + row[None, :]), mask=wanted, other=0.0
        ).to(tl.float32)
        result = result * (gate * tl.sigmoid(gate))
    tl.store(
        out + (first * HEADS + head) * HEAD_DIM + (local[:, None] * (HEADS * HEAD_DIM) + row[None, :]),
        result.to(out.dtype.element_ty),
        mask=wanted,
    )


def selective_state_update(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> torch.Tensor:
    if not _served(x, dt, state):
        return eager.selective_state_update(x, dt, a, b, c, state, state_slots, d, z, dt_bias, dt_softplus, dt_limit)
    x, dt, b, c, z = map(_with_dense_rows, (x, dt, b, c, z))
    a, d, dt_bias, state_slots = map(_dense, (a, d, dt_bias, state_slots))
    rows, heads, head_dim = x.shape
    out = x.new_empty(x.shape)
    constants = _constants(heads, b.shape[1], head_dim, b.shape[2])
    block = update_rows(head_dim, b.shape[2])
    state_update.launch(
        (rows, heads, -(-head_dim // block)),
        x,
        dt,
        a,
        b,
        c,
        state,
        state_slots,
        d,
        z,
        dt_bias,
        out,
        *_strides(x, dt, b, c, z),
        len(state),
        *map(float, dt_limit),
        **{**constants, "BLOCK_P": block},
        SOFTPLUS=dt_softplus,
    )
    return out


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    metadata: SSMMetadata,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> torch.Tensor:
    if not _served(x, dt, state):
        return eager.chunk_scan(x, dt, a, b, c, state, metadata, d, z, dt_bias, dt_softplus, dt_limit)
    x, dt, b, c, z = map(_with_dense_rows, (x, dt, b, c, z))
    a, d, dt_bias, state_slots = map(_dense, (a, d, dt_bias, metadata.state_slots))
    query_starts, resumed = map(_dense, (metadata.query_start_loc, metadata.has_initial_state.view(torch.uint8)))
    _, heads, head_dim = x.shape
    size = b.shape[2]
    out = x.new_empty(x.shape)
    shape = chunk_shape(head_dim, size, x.dtype)
    constants = {**_constants(heads, b.shape[1], head_dim, size), "CHUNK": shape["CHUNK"]}
    limits = tuple(map(float, dt_limit))
    chunks = tiles_for(metadata, shape["CHUNK"])
    count = len(chunks.seq)
    states = x.new_empty(count, heads, head_dim, size, dtype=torch.float32)
    steps, exponents = x.new_empty(2, count, heads, shape["CHUNK"], dtype=torch.float32)
    strides = _strides(x, dt, b, c, z)
    chunk_state.launch(
        (count, heads),
        x,
        dt,
        a,
        b,
        dt_bias,
        query_starts,
        chunks.seq,
        chunks.first,
        states,
        steps,
        exponents,
        *strides[:3],
        *limits,
        **constants,
        SOFTPLUS=dt_softplus,
        num_warps=STATE_WARPS,
    )
    pass_states.launch(
        (len(metadata.query_lens_host), heads, -(-head_dim * size // ELEMENTS)),
        states,
        exponents,
        state,
        state_slots,
        resumed,
        chunks.starts,
        len(state),
        HEADS=heads,
        ENTRIES=head_dim * size,
        CHUNK=shape["CHUNK"],
        BLOCK=ELEMENTS,
    )
    rows = scan_rows(head_dim, size)
    scan.launch(
        (count, heads, -(-head_dim // rows) * (shape["CHUNK"] // BLOCK_T)),
        x,
        b,
        c,
        d,
        z,
        query_starts,
        chunks.seq,
        chunks.first,
        states,
        steps,
        exponents,
        out,
        strides[0],
        *strides[2:],
        **{**constants, "BLOCK_P": rows},
        BLOCK_T=BLOCK_T,
        num_warps=shape["num_warps"],
    )
    return out


def update_rows(head_dim: int, size: int) -> int:
    """Rows of a state in a program: about four thousand entries."""
    return min(power_of_two(head_dim), max(1, 4096 // power_of_two(size)))


def scan_rows(head_dim: int, size: int) -> int:
    """Results of a token in a program: as many rows of a state as 64 KiB of shared memory hold in fp32."""
    return min(power_of_two(head_dim, 16), max(16, 16384 // power_of_two(size, 16)))


def chunk_shape(head_dim: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """Tokens of a chunk, and warps of the scan. A long chunk has fewer states go to memory: that is most bytes."""
    large = power_of_two(head_dim) * power_of_two(size) > 64 * 128
    return {"CHUNK": 64 if dtype == torch.float32 else 128, "num_warps": 8 if large else 4}


def _served(x: torch.Tensor, dt: torch.Tensor, state: torch.Tensor) -> bool:
    return x.dtype in FLOATS and dt.dtype in FLOATS and state.dtype in FLOATS


def _constants(heads: int, groups: int, head_dim: int, size: int) -> dict[str, int]:
    return {
        "HEADS": heads,
        "EACH": heads // groups,
        "HEAD_DIM": head_dim,
        "SIZE": size,
        "BLOCK_P": power_of_two(head_dim, 16),
        "BLOCK_N": power_of_two(size, 16),
    }


def _with_dense_rows(tensor: Any) -> Any:
    """A tensor whose rows are contiguous, wherever each begins: parts of a wider projection stay where they are."""
    if tensor is None or tensor[:1].is_contiguous():
        return tensor
    return tensor.contiguous()


def _dense(tensor: Any) -> Any:
    return None if tensor is None else tensor.contiguous()


def _strides(
    x: torch.Tensor, dt: torch.Tensor, b: torch.Tensor, c: torch.Tensor, z: torch.Tensor | None
) -> tuple[int, int, int, int, int]:
    return x.stride(0), dt.stride(0), b.stride(0), c.stride(0), 0 if z is None else z.stride(0)


_SHAPES = (
    (80, 1, 64, 128),
    (128, 8, 64, 128),
    (16, 1, 64, 128),
    (48, 1, 64, 64),
    (24, 1, 64, 256),
    (32, 2, 128, 256),
    (128, 1, 128, 16),
)
"""Heads, groups, size of a head and of its state: Mamba 2 2.7B, Codestral Mamba, an eighth of that, and others."""

_STRIDES = dict.fromkeys(("x_stride", "dt_stride", "b_stride", "c_stride", "z_stride"), "i32")
_LIMITS = {"low": "fp32", "high": "fp32"}


def _cases() -> list[tuple[tuple[int, int, int, int], torch.dtype, bool]]:
    """Shapes, dtypes, and whether there is a gate: some models have theirs in the norm that follows."""
    return [(shape, dtype, gated) for shape in _SHAPES for dtype in FLOATS[:2] for gated in (False, True)]


def _inputs(dtype: torch.dtype, gated: bool) -> dict[str, str | None]:
    kind = pointer(dtype)
    types: dict[str, str | None] = dict.fromkeys(("x", "dt", "b", "c", "d", "dt_bias"), kind)
    return types | {"a": "*fp32", "z": kind if gated else None}


def _ordered(kernel: Any, types: dict[str, str | None]) -> dict[str, str | None]:
    """Those that the kernel has."""
    return {name: types[name] for name in kernel.arg_names if name in types}


def _update_configurations(family: str) -> list[Configuration]:
    found = []
    for (heads, groups, head_dim, size), dtype, gated in _cases():
        for kept in (torch.float32, dtype):
            types = {**_inputs(dtype, gated), "state": pointer(kept), "slots": "*i32", "out": pointer(dtype)}
            types |= {**_STRIDES, "num_slots": "i32", **_LIMITS}
            constants = {**_constants(heads, groups, head_dim, size), "BLOCK_P": update_rows(head_dim, size)}
            found.append(Configuration(_ordered(state_update_kernel, types), {**constants, "SOFTPLUS": True}))
    return found


def _chunk_configurations(kernel: Any) -> list[Configuration]:
    found = []
    for (heads, groups, head_dim, size), dtype, gated in _cases():
        types = {**_inputs(dtype, gated), **dict.fromkeys(("query_start_loc", "chunk_seq", "chunk_first"), "*i32")}
        types |= {**dict.fromkeys(("states", "steps", "exponents"), "*fp32"), "out": pointer(dtype)}
        types |= {**_STRIDES, **_LIMITS}
        shape = chunk_shape(head_dim, size, dtype)
        constants = {**_constants(heads, groups, head_dim, size), "CHUNK": shape["CHUNK"]}
        scans = kernel is chunk_scan_kernel
        own = {"BLOCK_P": scan_rows(head_dim, size), "BLOCK_T": BLOCK_T}
        constants |= own if scans else {"SOFTPLUS": True}
        warps = shape["num_warps"] if scans else STATE_WARPS
        found.append(Configuration(_ordered(kernel, types), constants, num_warps=warps))
    return list({configuration.label: configuration for configuration in found}.values())


def _passing_configurations(family: str) -> list[Configuration]:
    found = []
    for heads, _, head_dim, size in _SHAPES:
        chunk = chunk_shape(head_dim, size, torch.bfloat16)["CHUNK"]
        for kept in FLOATS:
            types: dict[str, str | None] = {"states": "*fp32", "exponents": "*fp32", "state": pointer(kept)}
            types |= {"slots": "*i32", "has_initial": "*u8", "chunk_starts": "*i32", "num_slots": "i32"}
            constants = {"HEADS": heads, "ENTRIES": head_dim * size, "CHUNK": chunk, "BLOCK": ELEMENTS}
            found.append(Configuration(types, constants))
    return found


state_update = Kernel(state_update_kernel, _update_configurations)
chunk_state = Kernel(chunk_state_kernel, lambda family: _chunk_configurations(chunk_state_kernel))
pass_states = Kernel(pass_states_kernel, _passing_configurations)
scan = Kernel(chunk_scan_kernel, lambda family: _chunk_configurations(chunk_scan_kernel))
