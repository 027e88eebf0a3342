"""A row of logits as many programs see it, each a part of PART columns.

Tokens have one order: larger logits first, equals by id. An entry of that order is an int64, the *place*: the logit as
an int32 that is ordered as floats are, above; the id below, counted from the end. Every filter keeps all places from
some place on. So a filter is found by counting, and it does not matter in what order candidates are kept.

The weight of a token is its probability but for the common factor, ``e^((logit - largest) / temperature)``, as an
integer of 40 bits for the most likely one. Sums of integers are exact: however a row is cut into parts, and whatever
is added up first, a row gives the same token.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel, power_of_two

PART = 4096
WARPS = 8
LARGEST_VOCABULARY = 1 << 22
"""Weights of so many tokens add up to less than 2^63."""

ONE = tl.constexpr(float(1 << 40))
LOG2E = tl.constexpr(1.4426950408889634)
LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
NAN_KEY = tl.constexpr(0x7FFFFFFF)
INFINITE_KEY = tl.constexpr(0x7F800000)
IMPOSSIBLE_KEY = tl.constexpr(-0x7F800001)
"""Of -inf."""
NO_KEY = tl.constexpr(-0x80000000)
LOWEST_PLACE = tl.constexpr(-(1 << 63))
HIGHEST_PLACE = tl.constexpr((1 << 63) - 1)
IDS = tl.constexpr(0xFFFFFFFF)

# What can be drawn from a row.
NOTHING = tl.constexpr(0)
MOST_LIKELY = tl.constexpr(1)
ANY = tl.constexpr(2)

# Fields of a row's state.
BEST = tl.constexpr(0)
FIRST = tl.constexpr(1)
FLOOR = tl.constexpr(2)
MODE = tl.constexpr(3)
FIELDS = tl.constexpr(4)


@triton.jit
def key_of(x):
    """fp32 as int32 of the same order; -0 as 0, and NaN above all."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(x != x, NAN_KEY, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The logit of an int32 key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def place_of(key, column):
    """int64, of int32 keys and ids."""
    return (key.to(tl.int64) << 32) | (column.to(tl.int64) ^ IDS)


@triton.jit
def weight_of(x, largest, scale):
    """int64; 0 for -inf."""
    return (tl.exp2((x - largest) * scale) * ONE).to(tl.int64)


@triton.jit
def scan_kernel(logits, part_best, part_first, size, num_parts, PART: tl.constexpr, PDL: tl.constexpr):
    """Largest key of a part of a row, and the lowest id that has it: ``[num_rows, num_parts]`` int32 both."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
    key = tl.where(column < size, key_of(x), NO_KEY)
    best = tl.max(key, axis=0)
    first = tl.min(tl.where(key == best, column, NAN_KEY), axis=0)
    tl.store(part_best + row * num_parts + part, best)
    tl.store(part_first + row * num_parts + part, first)


@triton.jit
def best_of_row(part_best, part_first, row, num_parts, PARTS: tl.constexpr):
    """Its largest key, the lowest id that has it, and the lowest of the parts' largest keys that are possible."""
    part = tl.arange(0, PARTS)
    keys = tl.load(part_best + row * num_parts + part, mask=part < num_parts, other=NO_KEY)
    firsts = tl.load(part_first + row * num_parts + part, mask=part < num_parts, other=NAN_KEY)
    best = tl.max(keys, axis=0)
    first = tl.min(tl.where(keys == best, firsts, NAN_KEY), axis=0)
    lowest = tl.min(tl.where(keys > IMPOSSIBLE_KEY, keys, NAN_KEY), axis=0)
    return best, first, tl.minimum(lowest, best)


@triton.jit
def greedy_kernel(part_best, part_first, out, num_parts, PARTS: tl.constexpr, PDL: tl.constexpr):
    """The most likely token of a row, -1 where there is none."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    best, first, _ = best_of_row(part_best, part_first, row, num_parts, PARTS)
    usable = (best > IMPOSSIBLE_KEY) & (best < INFINITE_KEY)
    tl.store(out + row, tl.where(usable, first, -1).to(tl.int64))


@triton.jit
def begin_kernel(
    part_best, part_first, temperature, min_p, state, scales, num_parts, PARTS: tl.constexpr, PDL: tl.constexpr
):
    """Fill a row's ``state [num_rows, FIELDS]`` int64 and ``scales [num_rows, 2]``.

    ``state``: largest key, lowest id that has it, least key that min_p leaves, what can be drawn. ``scales``: 1 over
    the temperature, for powers of two, and how far the parts' largest logits lie apart. Without a temperature: for
    log-probabilities, where even impossible tokens count.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    best, first, lowest = best_of_row(part_best, part_first, row, num_parts, PARTS)
    usable = (best > IMPOSSIBLE_KEY) & (best < INFINITE_KEY)
    largest = value_of(best)
    if temperature is None:
        mode = tl.where(usable, ANY, NOTHING)
        floor = tl.minimum(best, IMPOSSIBLE_KEY)
        scale = tl.zeros_like(largest) + LOG2E
    else:
        heat = tl.load(temperature + row)
        share = tl.load(min_p + row)
        filtered = usable & (share > 0.0)
        # Rounded up: the least float that is likely enough.
        finite = tl.where(usable, largest, 0.0).to(tl.float64)
        limit = finite + heat.to(tl.float64) * tl.log(tl.where(filtered, share, 1.0))
        rounded = limit.to(tl.float32)
        floor = key_of(rounded)
        floor = tl.where(rounded.to(tl.float64) < limit, floor + 1, floor)
        floor = tl.minimum(tl.maximum(tl.where(filtered, floor, NO_KEY), IMPOSSIBLE_KEY + 1), best)
        mode = tl.where(usable, tl.where(heat > 0.0, ANY, MOST_LIKELY), NOTHING)
        # 1 over a tiny temperature is infinite, and 0 times infinity is not 0.
        scale = tl.minimum((tl.zeros_like(heat) + LOG2E) / tl.where(heat > 0.0, heat, 1.0), LARGEST_FLOAT)
    own = state + row * FIELDS
    tl.store(own + BEST, best.to(tl.int64))
    tl.store(own + FIRST, first.to(tl.int64))
    tl.store(own + FLOOR, floor.to(tl.int64))
    tl.store(own + MODE, mode.to(tl.int64))
    tl.store(scales + 2 * row, scale)
    tl.store(scales + 2 * row + 1, largest - value_of(lowest))


@dataclass(frozen=True)
class Rows:
    """Contiguous logits ``[num_rows, size]`` with what ``scan_kernel`` found in them."""

    logits: torch.Tensor
    part_best: torch.Tensor
    part_first: torch.Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and parts."""
        return self.part_best.shape[0], self.part_best.shape[1]

    @property
    def parts(self) -> int:
        """Places for parts in a kernel: a power of two, one of few, for few compilations."""
        number = self.part_best.shape[1]
        return next((parts for parts in PARTS if number <= parts), power_of_two(number))


@dataclass(frozen=True)
class RowStates:
    """What ``begin_kernel`` wrote."""

    state: torch.Tensor
    scales: torch.Tensor


def scanned(logits: torch.Tensor) -> Rows:
    """A pass over the logits."""
    logits = logits.contiguous()
    num_rows, size = logits.shape
    num_parts = triton.cdiv(size, PART)
    part_best = logits.new_empty(num_rows, num_parts, dtype=torch.int32)
    part_first = torch.empty_like(part_best)
    scan.launch((num_rows, num_parts), logits, part_best, part_first, size, num_parts, PART=PART, num_warps=WARPS)
    return Rows(logits, part_best, part_first)


def most_likely(rows: Rows) -> torch.Tensor:
    """``[num_rows]`` int64, -1 where there is none."""
    out = rows.logits.new_empty(len(rows.logits), dtype=torch.int64)
    pick_best.launch((len(out),), rows.part_best, rows.part_first, out, rows.grid[1], PARTS=rows.parts, num_warps=1)
    return out


def begun(rows: Rows, temperature: torch.Tensor | None, min_p: torch.Tensor | None) -> RowStates:
    """The states of rows; fp32 temperatures and fp64 min_p."""
    num_rows = len(rows.logits)
    state = rows.logits.new_empty(num_rows, FIELDS.value, dtype=torch.int64)
    scales = rows.logits.new_empty(num_rows, 2)
    begin.launch(
        (num_rows,),
        rows.part_best,
        rows.part_first,
        temperature,
        min_p,
        state,
        scales,
        rows.grid[1],
        PARTS=rows.parts,
        num_warps=1,
    )
    return RowStates(state, scales)


PARTS = (1, 16, 64)
"""Of vocabularies up to 262144."""


def _scan_configurations(family: str) -> list[Configuration]:
    types = {"logits": "*fp32", "part_best": "*i32", "part_first": "*i32", "size": "i32", "num_parts": "i32"}
    return [Configuration(types, {"PART": PART}, WARPS)]


def _greedy_configurations(family: str) -> list[Configuration]:
    types = {"part_best": "*i32", "part_first": "*i32", "out": "*i64", "num_parts": "i32"}
    return [Configuration(types, {"PARTS": parts}, 1) for parts in PARTS]


def _begin_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {
                "part_best": "*i32",
                "part_first": "*i32",
                "temperature": "*fp32" if drawn else None,
                "min_p": "*fp64" if drawn else None,
                "state": "*i64",
                "scales": "*fp32",
                "num_parts": "i32",
            },
            {"PARTS": parts},
            1,
        )
        for parts in PARTS
        for drawn in (True, False)
    ]


scan = Kernel(scan_kernel, _scan_configurations)
pick_best = Kernel(greedy_kernel, _greedy_configurations)
begin = Kernel(begin_kernel, _begin_configurations)
