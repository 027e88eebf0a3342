"""Logits that are changed in place must be contiguous for the kernels; others are changed by the eager face."""

import torch

from vllm_kernels.cpu.native import INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import sampling as eager

_apply_penalties = Kernel("apply_penalties", *(POINTER,) * 7, INT64, INT64, INT64, INT32, returns=INT64)
_apply_bias = Kernel("apply_bias", *(POINTER,) * 4, INT64, INT64, INT64, returns=INT64)
_mask_tokens = Kernel("mask_tokens", *(POINTER,) * 3, INT64, INT64, INT64, returns=INT64)
_keep_tokens = Kernel("keep_tokens", *(POINTER,) * 4, INT64, INT64, INT64, INT32, returns=INT64)
_greedy = Kernel("greedy", *(POINTER,) * 2, INT64, INT64, INT32)
_sample = Kernel("sample", *(POINTER,) * 7, INT64, INT64, INT32)
_filter_logits = Kernel("filter_logits", *(POINTER,) * 6, INT64, INT64, INT32)
_top_logprobs = Kernel("top_logprobs", *(POINTER,) * 6, INT64, INT64, INT64, INT32, returns=INT64)

_BYTES_OF_RANKED = 8


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    token_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    if not logits.is_contiguous():
        eager.apply_penalties(logits, rows, offsets, token_counts, repetition, presence, frequency)
        return
    vectors = [each.contiguous() for each in (rows, offsets, token_counts, repetition, presence, frequency)]
    outside = _apply_penalties.call(
        logits.data_ptr(),
        *[vector.data_ptr() for vector in vectors],
        len(rows),
        *logits.shape,
        torch.get_num_threads(),
    )
    _check_inside(outside)


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    if not logits.is_contiguous():
        eager.apply_bias(logits, rows, token_ids, bias)
        return
    rows, token_ids, bias = rows.contiguous(), token_ids.contiguous(), bias.to(torch.float32).contiguous()
    outside = _apply_bias.call(
        logits.data_ptr(),
        rows.data_ptr(),
        token_ids.data_ptr(),
        bias.data_ptr(),
        len(rows),
        *logits.shape,
    )
    _check_inside(outside)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    if not logits.is_contiguous():
        eager.mask_tokens(logits, rows, token_ids)
        return
    rows, token_ids = rows.contiguous(), token_ids.contiguous()
    outside = _mask_tokens.call(logits.data_ptr(), rows.data_ptr(), token_ids.data_ptr(), len(rows), *logits.shape)
    _check_inside(outside)


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    if not logits.is_contiguous():
        eager.keep_tokens(logits, rows, token_ids)
        return
    rows, token_ids, kept = rows.contiguous(), token_ids.contiguous(), torch.empty(len(rows))
    outside = _keep_tokens.call(
        logits.data_ptr(),
        rows.data_ptr(),
        token_ids.data_ptr(),
        kept.data_ptr(),
        len(rows),
        *logits.shape,
        torch.get_num_threads(),
    )
    _check_inside(outside)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.contiguous()
    result = torch.empty(len(logits), dtype=torch.int64)
    _greedy.call(logits.data_ptr(), result.data_ptr(), *logits.shape, torch.get_num_threads())
    return result


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    logits = logits.contiguous()
    vectors = (*_filters(temperature, top_k, top_p, min_p), uniforms.contiguous())
    result = torch.empty(len(logits), dtype=torch.int64)
    _sample.call(
        logits.data_ptr(),
        *[vector.data_ptr() for vector in vectors],
        result.data_ptr(),
        *logits.shape,
        torch.get_num_threads(),
    )
    return result


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    logits = logits.contiguous()
    vectors = _filters(temperature, top_k, top_p, min_p)
    result = torch.empty_like(logits)
    _filter_logits.call(
        logits.data_ptr(),
        *[vector.data_ptr() for vector in vectors],
        result.data_ptr(),
        *logits.shape,
        torch.get_num_threads(),
    )
    return result


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, token_ids = logits.contiguous(), token_ids.contiguous()
    num_rows = len(logits)
    ids = torch.empty(num_rows, k + 1, dtype=torch.int64)
    logprobs, ranks = torch.empty(num_rows, k + 1), torch.empty(num_rows, dtype=torch.int64)
    entries = torch.empty(num_rows * 2 * k * _BYTES_OF_RANKED, dtype=torch.uint8)
    outside = _top_logprobs.call(
        logits.data_ptr(),
        token_ids.data_ptr(),
        ids.data_ptr(),
        logprobs.data_ptr(),
        ranks.data_ptr(),
        entries.data_ptr(),
        k,
        *logits.shape,
        torch.get_num_threads(),
    )
    _check_inside(outside)
    return ids, logprobs, ranks


def _filters(
    temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """In the types and the layout of the kernels; without a copy for what the sampler gives."""
    return (
        temperature.to(torch.float32).contiguous(),
        top_k.contiguous(),
        top_p.to(torch.float64).contiguous(),
        min_p.to(torch.float64).contiguous(),
    )


def _check_inside(entry: int) -> None:
    """``entry``: what a kernel returns, the number of one that lies outside the logits, or -1."""
    if entry >= 0:
        raise ValueError(f"entry {entry} lies outside the logits")
