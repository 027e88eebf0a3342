"""What changes logits before a token is drawn. Each feature is one class: built for a list of requests when that list
changes, applied in every step, and absent when no request in the list uses it.
"""

from typing import Protocol, Self

import numpy as np
import torch

from vllm_engine.sampling.state import BadWords, SamplingState, TokenCounts
from vllm_kernels.ops import sampling as ops
from vllm_kernels.transfers import upload

Row = tuple[int, SamplingState]
"""A row of the logits and the state that it belongs to."""


class Adjustment(Protocol):
    """One feature over the rows of a batch that use it."""

    rows: list[int]
    """Rows that it may change."""

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        """For these states, or None when none of them uses the feature."""

    def apply(self, logits: torch.Tensor) -> None:
        """Change its rows of ``logits`` [R, V] fp32 in place."""


class AllowedTokens:
    """``allowed_token_ids``: everything else becomes impossible."""

    def __init__(self, allowed: dict[int, list[int]]) -> None:
        self.rows = list(allowed)
        self._entries: tuple[torch.Tensor, ...] = _entries(allowed)

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        allowed = {row: state.params.allowed_token_ids for row, state in states if state.params.allowed_token_ids}
        return cls(allowed) if allowed else None

    def apply(self, logits: torch.Tensor) -> None:
        self._entries = _beside(logits, *self._entries)
        ops.keep_tokens(logits, *self._entries)


class ForbiddenWords:
    """``bad_words``: the token that would complete one becomes impossible."""

    def __init__(self, words: dict[int, BadWords]) -> None:
        self.rows = list(words)
        self._words = words

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        words = {row: state.bad_words for row, state in states if state.bad_words is not None}
        return cls(words) if words else None

    def apply(self, logits: torch.Tensor) -> None:
        forbidden = {row: list(words.forbidden()) for row, words in self._words.items()}
        ops.mask_tokens(logits, *_beside(logits, *_entries(forbidden)))


class MinTokens:
    """``min_tokens``: no stop token before so many output tokens."""

    def __init__(self, states: dict[int, SamplingState]) -> None:
        self.rows = list(states)
        self._states = states

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        short = {
            row: state
            for row, state in states
            if state.num_outputs < state.params.min_tokens and state.request.stop_token_ids
        }
        return cls(short) if short else None

    def apply(self, logits: torch.Tensor) -> None:
        stops = {
            row: state.request.stop_token_ids
            for row, state in self._states.items()
            if state.num_outputs < state.params.min_tokens
        }
        if stops:
            ops.mask_tokens(logits, *_beside(logits, *_entries(stops)))


class LogitBias:
    """``logit_bias``: added to the logits of some tokens."""

    def __init__(self, biases: dict[int, dict[int, float]]) -> None:
        self.rows = list(biases)
        values = [value for bias in biases.values() for value in bias.values()]
        entries = _entries({row: list(bias) for row, bias in biases.items()})
        self._entries: tuple[torch.Tensor, ...] = (*entries, torch.tensor(values, dtype=torch.float32))

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        biases = {row: state.params.logit_bias for row, state in states if state.params.logit_bias}
        return cls(biases) if biases else None

    def apply(self, logits: torch.Tensor) -> None:
        self._entries = _beside(logits, *self._entries)
        ops.apply_bias(logits, *self._entries)


class Penalties:
    """``repetition_penalty``, ``presence_penalty`` and ``frequency_penalty``."""

    def __init__(self, rows: list[int], counts: list[TokenCounts], penalties: list[tuple[float, float, float]]) -> None:
        self.rows = rows
        self._counts = counts
        vectors = torch.tensor(penalties, dtype=torch.float32).T.contiguous().unbind()
        self._rows_and_penalties: tuple[torch.Tensor, ...] = (torch.tensor(rows, dtype=torch.int64), *vectors)

    @classmethod
    def build(cls, states: list[Row]) -> Self | None:
        rows, counts, penalties = [], [], []
        for row, state in states:
            if state.counts is not None:
                rows.append(row)
                counts.append(state.counts)
                params = state.params
                penalties.append((params.repetition_penalty, params.presence_penalty, params.frequency_penalty))
        return cls(rows, counts, penalties) if rows else None

    def apply(self, logits: torch.Tensor) -> None:
        offsets = np.zeros(len(self.rows) + 1, dtype=np.int64)
        np.cumsum([len(counts) for counts in self._counts], out=offsets[1:])
        entries = np.concatenate([counts.entries for counts in self._counts])
        self._rows_and_penalties = _beside(logits, *self._rows_and_penalties)
        rows, *penalties = self._rows_and_penalties
        growing = _beside(logits, torch.from_numpy(offsets), torch.from_numpy(entries))
        ops.apply_penalties(logits, rows, *growing, *penalties)


# Masks first and penalties last: a bias on a forbidden token stays without effect.
ADJUSTMENTS: tuple[type[Adjustment], ...] = (AllowedTokens, ForbiddenWords, MinTokens, LogitBias, Penalties)


def _entries(token_ids: dict[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and token ids as the sparse operations take them."""
    rows = np.repeat(np.fromiter(token_ids, dtype=np.int64), [len(ids) for ids in token_ids.values()])
    flat = np.array([token_id for ids in token_ids.values() for token_id in ids], dtype=np.int64)
    return torch.from_numpy(rows), torch.from_numpy(flat)


def _beside(logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors on the device of the logits; the same ones where they are there."""
    return tuple(upload(tensor, logits.device) for tensor in tensors)
