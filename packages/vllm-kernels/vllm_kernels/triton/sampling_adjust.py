"""Changes of single logits, in place. Logits ``[num_rows, size]`` have any strides; an entry outside changes nothing.

Entries are distinct (or write the same value), so that programs never write one place differently.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel

BLOCK = 256
FILLED = 16384
"""Columns that one program makes impossible."""
SHARES = 4
"""Programs for the entries of one penalised row."""


@triton.jit(do_not_specialize=["num_entries", "num_rows"])
def penalties_kernel(
    logits,
    rows,
    offsets,
    token_counts,
    repetition,
    presence,
    frequency,
    num_entries,
    num_rows,
    size,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Every SHARES-th block of the entries ``[offsets[i], offsets[i + 1])`` of ``token_counts [num_entries, 2]``."""
    wait_for_earlier(PDL)
    i = tl.program_id(0)
    row = tl.load(rows + i)
    begin = tl.maximum(tl.load(offsets + i), 0)
    end = tl.minimum(tl.load(offsets + i + 1), num_entries)
    end = tl.where((row >= 0) & (row < num_rows), end, begin)
    factor, once, each = tl.load(repetition + i), tl.load(presence + i), tl.load(frequency + i)
    for start in range(begin + tl.program_id(1) * BLOCK, end, BLOCK * SHARES):
        place = start + tl.arange(0, BLOCK)
        present = place < end
        token = tl.load(token_counts + 2 * place, mask=present, other=-1).to(tl.int64)
        count = tl.load(token_counts + 2 * place + 1, mask=present, other=0)
        present = present & (token >= 0) & (token < size)
        where = logits + row * row_stride + token * column_stride
        logit = tl.load(where, mask=present, other=0.0)
        logit = tl.where(logit > 0.0, tl.div_rn(logit, tl.zeros_like(logit) + factor), logit * factor)
        logit = logit - each * count.to(tl.float32) - tl.where(count > 0, once, 0.0)
        tl.store(where, logit, mask=present)


@triton.jit(do_not_specialize=["num_entries", "num_rows"])
def entries_kernel(
    logits,
    rows,
    token_ids,
    values,
    num_entries,
    num_rows,
    size,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK entries: ``add`` values ``[num_entries]`` to their logits, ``set`` or ``take`` these, or ``mask`` them."""
    wait_for_earlier(PDL)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    present = i < num_entries
    row = tl.load(rows + i, mask=present, other=-1)
    token = tl.load(token_ids + i, mask=present, other=-1)
    present = present & (row >= 0) & (row < num_rows) & (token >= 0) & (token < size)
    where = logits + row * row_stride + token * column_stride
    if KIND == "mask":
        tl.store(where, tl.full([BLOCK], float("-inf"), tl.float32), mask=present)
    elif KIND == "take":
        tl.store(values + i, tl.load(where, mask=present, other=0.0), mask=present)
    else:
        value = tl.load(values + i, mask=present, other=0.0)
        if KIND == "add":
            value = value + tl.load(where, mask=present, other=0.0)
        tl.store(where, value, mask=present)


@triton.jit(do_not_specialize=["num_rows"])
def fill_kernel(
    logits,
    rows,
    token_ids,
    num_rows,
    size,
    row_stride,
    column_stride,
    FILLED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """-inf in FILLED columns of an entry's row, unless the entry before, of the same row, has a program for it."""
    wait_for_earlier(PDL)
    i = tl.program_id(0)
    row = tl.load(rows + i)
    token = tl.load(token_ids + i)
    before = tl.load(rows + tl.maximum(i - 1, 0))
    token_before = tl.load(token_ids + tl.maximum(i - 1, 0))
    done = (i > 0) & (before == row) & (token_before >= 0) & (token_before < size)
    wanted = (row >= 0) & (row < num_rows) & (token >= 0) & (token < size)
    begin = tl.program_id(1) * FILLED
    end = tl.minimum(begin + FILLED, size)
    end = tl.where(wanted & (done == 0), end, begin)
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        where = logits + row * row_stride + column.to(tl.int64) * column_stride
        tl.store(where, tl.full([BLOCK], float("-inf"), tl.float32), mask=column < end)


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    token_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    vectors = (each.contiguous() for each in (rows, offsets, token_counts, repetition, presence, frequency))
    penalties.launch(
        (len(rows), SHARES),
        logits,
        *vectors,
        len(token_counts),
        *logits.shape,
        *logits.stride(),
        BLOCK=BLOCK,
        SHARES=SHARES,
    )


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    _entries("add", logits, rows.contiguous(), token_ids.contiguous(), bias.to(torch.float32).contiguous())


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    _entries("mask", logits, rows.contiguous(), token_ids.contiguous(), None)


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    rows, token_ids, kept = rows.contiguous(), token_ids.contiguous(), logits.new_empty(len(rows))
    _entries("take", logits, rows, token_ids, kept)
    fill.launch(
        (len(rows), triton.cdiv(logits.shape[1], FILLED)),
        logits,
        rows,
        token_ids,
        *logits.shape,
        *logits.stride(),
        FILLED=FILLED,
        BLOCK=4 * BLOCK,
    )
    _entries("set", logits, rows, token_ids, kept)


def _entries(
    kind: str, logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor | None
) -> None:
    entries.launch(
        (triton.cdiv(len(rows), BLOCK),),
        logits,
        rows,
        token_ids,
        values,
        len(rows),
        *logits.shape,
        *logits.stride(),
        BLOCK=BLOCK,
        KIND=kind,
    )


_SHAPE = dict.fromkeys(("num_rows", "size", "row_stride", "column_stride"), "i32")


def _penalties_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = {"logits": "*fp32", "rows": "*i64", "offsets": "*i64", "token_counts": "*i32"}
    types |= {**dict.fromkeys(("repetition", "presence", "frequency"), "*fp32"), "num_entries": "i32", **_SHAPE}
    return [Configuration(types, {"BLOCK": BLOCK, "SHARES": SHARES})]


def _entries_configurations(family: str) -> list[Configuration]:
    types = {"logits": "*fp32", "rows": "*i64", "token_ids": "*i64"}
    return [
        Configuration(
            {**types, "values": None if kind == "mask" else "*fp32", "num_entries": "i32", **_SHAPE},
            {"BLOCK": BLOCK, "KIND": kind},
        )
        for kind in ("add", "mask", "take", "set")
    ]


def _fill_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = {"logits": "*fp32", "rows": "*i64", "token_ids": "*i64", **_SHAPE}
    return [Configuration(types, {"FILLED": FILLED, "BLOCK": 4 * BLOCK})]


penalties = Kernel(penalties_kernel, _penalties_configurations)
entries = Kernel(entries_kernel, _entries_configurations)
fill = Kernel(fill_kernel, _fill_configurations)
