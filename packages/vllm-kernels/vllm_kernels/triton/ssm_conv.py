"""The causal convolution of few taps, see ``ops.ssm``: as fast as its bytes are, so each tile reads them once."""

import torch
import triton
import triton.language as tl

from vllm_kernels.eager import ssm as eager
from vllm_kernels.ops.ssm import ConvActivation, SSMMetadata
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.ssm_plan import tiles_for

BLOCK_T = 32
BLOCK_C = 64
WARPS = 8
"""A thread has eight results: with more, all the inputs that are under way at once do not fit its registers."""
UPDATE_C = 256


@triton.jit(do_not_specialize=["num_slots"])
def conv_kernel(
    x,
    weight,
    bias,
    state,
    slots,
    has_initial,
    query_start_loc,
    tile_seq,
    tile_first,
    out,
    x_stride,
    num_slots,
    channels,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T tokens of a sequence and BLOCK_C channels.

    Only the program of a sequence's first tokens looks at its state, so it is the one that writes it, too.
    """
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    seq = tl.load(tile_seq + tile).to(tl.int64)
    first = tl.load(tile_first + tile)
    start = tl.load(query_start_loc + seq).to(tl.int64)
    length = tl.load(query_start_loc + seq + 1) - start
    slot = tl.load(slots + seq).to(tl.int64)
    kept = tl.where((slot >= 0) & (slot < num_slots), channels, 0)
    resumed = tl.where(tl.load(has_initial + seq) != 0, kept, 0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    token = first + tl.arange(0, BLOCK_T)
    x += (start + first) * x_stride  # so that places relative to it fit 32 bits
    out += (start + first) * channels
    history = state + (slot * channels + channel)[None, :] * (WIDTH - 1)

    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    # Inputs before the sequence's tokens come first in the sum, so it is the same wherever a prompt was cut.
    if first == 0:
        for tap in tl.static_range(WIDTH - 1):
            source = token - (WIDTH - 1) + tap
            earlier = (token < length) & (source < 0)
            values = tl.load(
                history + (source + WIDTH - 1)[:, None],
                mask=earlier[:, None] & (channel < resumed)[None, :],
                other=0.0,
            ).to(tl.float32)
            total += values * tl.load(weight + channel * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(WIDTH):
        source = token - (WIDTH - 1) + tap
        present = (token < length) & (source >= 0)
        values = tl.load(
            x + ((source - first)[:, None] * x_stride + channel[None, :]),
            mask=present[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        total += values * tl.load(weight + channel * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(
        out + ((token - first)[:, None] * channels + channel[None, :]),
        total.to(out.dtype.element_ty),
        mask=(token < length)[:, None] & inside[None, :],
    )

    if first == 0:
        place = tl.arange(0, TAPS)
        newest = length - (WIDTH - 1) + place
        wanted = place < WIDTH - 1
        inputs = tl.load(
            x + newest[:, None] * x_stride + channel[None, :],
            mask=(wanted & (newest >= 0))[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        inputs += tl.load(
            history + (newest + WIDTH - 1)[:, None],
            mask=(wanted & (newest < 0))[:, None] & (channel < resumed)[None, :],
            other=0.0,
        ).to(tl.float32)
        tl.debug_barrier()  # other threads may still have to read what is written here
        tl.store(
            history + place[:, None],
            inputs.to(state.dtype.element_ty),
            mask=wanted[:, None] & (channel < kept)[None, :],
        )


@triton.jit(do_not_specialize=["num_slots"])
def conv_update_kernel(
    x,
    weight,
    bias,
    state,
    slots,
    out,
    x_stride,
    num_slots,
    channels,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token of a sequence and BLOCK_C channels: the state moves on by one input."""
    wait_for_earlier(PDL)
    seq = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + seq).to(tl.int64)
    kept = tl.where((slot >= 0) & (slot < num_slots), channels, 0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    place = tl.arange(0, TAPS)
    known = (place < WIDTH - 1)[:, None] & (channel < kept)[None, :]
    history = state + (slot * channels + channel)[None, :] * (WIDTH - 1) + place[:, None]
    newest = tl.load(x + seq * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(history, mask=known, other=0.0).to(tl.float32)
    after = tl.load(history + 1, mask=known & (place < WIDTH - 2)[:, None], other=0.0).to(tl.float32)
    after = tl.where((place == WIDTH - 2)[:, None], newest[None, :], after)
    factors = tl.load(
        weight + channel[None, :] * WIDTH + place[:, None],
        mask=(place < WIDTH - 1)[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    total = tl.sum(before * factors, axis=0)
    total += newest * tl.load(weight + channel * WIDTH + WIDTH - 1, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(out + seq * channels + channel, total.to(out.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # other threads may still have to read what is written here
    tl.store(history, after.to(state.dtype.element_ty), mask=known)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    metadata: SSMMetadata,
    activation: ConvActivation | None,
) -> torch.Tensor:
    width = weight.shape[1]
    if x.dtype not in FLOATS or state.dtype not in FLOATS or width > BLOCK_T:
        return eager.causal_conv1d(x, weight, bias, state, metadata, activation)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(x.shape)
    tiles = tiles_for(metadata, BLOCK_T)
    conv.launch(
        (len(tiles.seq), triton.cdiv(x.shape[1], BLOCK_C)),
        x,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        state,
        metadata.state_slots.contiguous(),
        metadata.has_initial_state.view(torch.uint8).contiguous(),
        metadata.query_start_loc.contiguous(),
        tiles.seq,
        tiles.first,
        out,
        x.stride(0),
        len(state),
        x.shape[1],
        WIDTH=width,
        TAPS=power_of_two(width - 1),
        BLOCK_T=BLOCK_T,
        BLOCK_C=BLOCK_C,
        SILU=activation is not None,
        num_warps=WARPS,
    )
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    activation: ConvActivation | None,
) -> torch.Tensor:
    width = weight.shape[1]
    if x.dtype not in FLOATS or state.dtype not in FLOATS:
        return eager.causal_conv1d_update(x, weight, bias, state, state_slots, activation)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(x.shape)
    conv_update.launch(
        (len(x), triton.cdiv(x.shape[1], UPDATE_C)),
        x,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        state,
        state_slots.contiguous(),
        out,
        x.stride(0),
        len(state),
        x.shape[1],
        WIDTH=width,
        TAPS=power_of_two(width - 1),
        BLOCK_C=UPDATE_C,
        SILU=activation is not None,
    )
    return out


def _configurations(update: bool) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        for kept in dict.fromkeys((dtype, torch.float32)):
            for width in (2, 3, 4):
                for silu in (True, False):
                    kind = pointer(dtype)
                    types: dict[str, str | None] = {"x": kind, "weight": kind, "bias": kind, "state": pointer(kept)}
                    types["slots"] = "*i32"
                    constants = {"WIDTH": width, "TAPS": power_of_two(width - 1)}
                    if update:
                        constants["BLOCK_C"] = UPDATE_C
                    else:
                        types |= {"has_initial": "*u8", "query_start_loc": "*i32"}
                        types |= {"tile_seq": "*i32", "tile_first": "*i32"}
                        constants |= {"BLOCK_T": BLOCK_T, "BLOCK_C": BLOCK_C}
                    types |= {"out": kind, **dict.fromkeys(("x_stride", "num_slots", "channels"), "i32")}
                    found.append(Configuration(types, {**constants, "SILU": silu}, 4 if update else WARPS))
    return found


conv = Kernel(conv_kernel, lambda family: _configurations(update=False))
conv_update = Kernel(conv_update_kernel, lambda family: _configurations(update=True))
