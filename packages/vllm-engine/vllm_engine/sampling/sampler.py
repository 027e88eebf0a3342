"""``Sampler``: from the logits of a step to one token per request."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vllm_engine.messages import PositionLogprobs
from vllm_engine.sampling.adjustments import ADJUSTMENTS, Adjustment
from vllm_engine.sampling.state import SamplingState, check_token_ids
from vllm_engine.sampling.uniforms import seed_streams, uniforms_at
from vllm_kernels.ops import sampling as ops
from vllm_kernels.transfers import Download, download, upload, upload_arrays

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
NAN_LOGITS = "the logits hold NaN"
"""What is wrong with a row that the model got wrong."""
__all__ = ["NAN_LOGITS", "Sampler", "SamplerOutput", "SamplingState", "check_token_ids"]


@dataclass(slots=True)
class SamplerOutput:
    """One entry per state, in order.

    ``logprobs`` is None where the request did not ask. Where ``errors`` tells why a request cannot go on, its token
    is -1 and its logprobs are None.
    """

    token_ids: list[int]
    logprobs: list[PositionLogprobs | None]
    errors: list[str | None]


class Sampler:
    """Draws tokens. Holds nothing of any request: only what the last list of states was turned into, for reuse.

    Args:
        vocab_size: columns of the logits.
        logprobs_mode: what is returned as log-probabilities. ``raw``: of the logits as they come from the model;
            ``processed``: of those that the token is drawn from, -inf for tokens that cannot be. ``logprobs``: natural
            logarithms of probabilities; ``logits``: the logits themselves.
    """

    def __init__(self, vocab_size: int, logprobs_mode: LogprobsMode = "raw_logprobs") -> None:
        self._vocab_size = vocab_size
        self._processed = logprobs_mode in ("processed_logprobs", "processed_logits")
        self._normalized = logprobs_mode in ("raw_logprobs", "processed_logprobs")
        self._composition = _Composition([], vocab_size, torch.device("cpu"))
        self._copies = torch.empty(0, vocab_size)

    def sample(self, logits: torch.Tensor, states: list[SamplingState]) -> SamplerOutput:
        """One token for each state, as of ``begin``."""
        return self.begin(logits, states).finish()

    def begin(self, logits: torch.Tensor, states: list[SamplingState]) -> "Sampling":
        """Draw one token for each state, on the device of the logits, which is not waited for. Does not append it.

        A row depends on its state and its logits alone. In this order: raw log-probabilities are of the logits as they
        come; then allowed tokens, bad words, stop tokens before ``min_tokens``, logit bias, penalties, the user's own
        logits processors, temperature, min_p, top_k, top_p, and the draw. Processed log-probabilities are of the logits
        after all of these. A greedy request has no temperature and no filters, so its are of the logits before these.

        A user's own processors see their logits, so for these alone the device is waited for.

        Args:
            logits: ``[len(states), vocab_size]``, fp32. Changed in place, and kept until the result is taken.
            states: of the requests to sample.

        Raises:
            ValueError: shape or dtype does not fit.
        """
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(f"logits must be [{len(states)}, {self._vocab_size}], got {list(logits.shape)}")
        if states != self._composition.states:  # compares by identity: a state defines no equality
            self._composition = _Composition(list(states), self._vocab_size, logits.device)
        batch = self._composition
        raw = self._kept_for_logprobs(logits, batch)
        for adjustment in batch.adjustments:
            adjustment.apply(logits)
        errors = list(batch.errors)
        for row, processors in batch.processors:
            errors[row] = processors.apply(logits[row])
        chosen = ops.greedy(logits) if batch.all_greedy else batch.draw(logits)
        found = []
        for group, kept in zip(batch.logprob_groups, raw, strict=True):
            shown = group.rows_of(logits) if kept is None else kept
            if self._processed and not batch.all_greedy:
                shown = batch.filtered(shown, group.index)
            picked = chosen.index_select(0, group.index)
            found.append((group.rows, _top_logprobs(shown, picked, group.num_top, self._normalized)))
        return Sampling(logits, chosen, errors, found)

    def _kept_for_logprobs(self, logits: torch.Tensor, batch: "_Composition") -> list[torch.Tensor | None]:
        """For each group of ``batch.logprob_groups``: its rows as they are now, where they will change and are needed.

        The memory is kept for the next step: fresh memory costs more than the copy.
        """
        groups = batch.logprob_groups
        needed = [len(group.rows) if group.adjusted and not self._processed else 0 for group in groups]
        if sum(needed) > len(self._copies):
            self._copies = logits.new_empty(sum(needed), self._vocab_size)
        kept: list[torch.Tensor | None] = []
        start = 0
        for group, count in zip(groups, needed, strict=True):
            copies = self._copies[start : start + count]
            kept.append(torch.index_select(logits, 0, group.index, out=copies) if count else None)
            start += count
        return kept

    def prompt_logprobs(self, logits: torch.Tensor, next_token_ids: list[int], num_logprobs: int) -> "PromptLogprobs":
        """Log-probabilities of the prompt tokens that follow each position; or their logits, where the mode says so.

        They are always of the logits as they come: nothing is drawn here.

        Args:
            logits: ``[len(next_token_ids), vocab_size]``, fp32; not changed.
            next_token_ids: token that stands after each position.
            num_logprobs: most likely tokens to list beside it; -1 for all.

        Raises:
            ValueError: shapes or dtypes do not fit, or a token is outside the vocabulary.
        """
        if next_token_ids and (min(next_token_ids) < 0 or max(next_token_ids) >= self._vocab_size):
            raise ValueError(f"next_token_ids has an id outside the vocabulary of {self._vocab_size} tokens")
        tokens = upload(torch.tensor(next_token_ids, dtype=torch.int64), logits.device)
        num_top = _num_top(num_logprobs, self._vocab_size)
        return PromptLogprobs(download(*_top_logprobs(logits, tokens, num_top, self._normalized)))


class PromptLogprobs:
    """Log-probabilities of prompt tokens, on their way from the device."""

    def __init__(self, there: Download) -> None:
        self._there = there

    def finish(self) -> list[PositionLogprobs]:
        """One entry for each position, waited for."""
        return _positions(*self._there.wait())


class Sampling:
    """Tokens that are drawn and on their way from the device.

    Args:
        logits: after all adjustments: what is wrong with a row is looked up there.
        chosen: int64 ``[R]``, on the device: the tokens, -1 where none is possible.
        errors: why a row cannot go on, as far as that is known.
        logprobs: rows, and what ``_top_logprobs`` gave for them.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        chosen: torch.Tensor,
        errors: list[str | None],
        logprobs: list[tuple[list[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]],
    ) -> None:
        self.chosen = chosen
        self._logits = logits
        self._errors = errors
        self._rows = [rows for rows, _ in logprobs]
        self._there = download(chosen, *(tensor for _, tensors in logprobs for tensor in tensors))

    def finish(self) -> SamplerOutput:
        """The tokens, waited for."""
        chosen, *rest = self._there.wait()
        errors = self._errors
        token_ids: list[int] = chosen.tolist()
        if min(token_ids, default=0) < 0 or any(errors):
            for row, token_id in enumerate(token_ids):
                if token_id < 0 and errors[row] is None:
                    errors[row] = _why(self._logits[row])
                elif errors[row] is not None:
                    token_ids[row] = -1
        logprobs: list[PositionLogprobs | None] = [None] * len(token_ids)
        for place, rows in enumerate(self._rows):
            for row, position in zip(rows, _positions(*rest[3 * place : 3 * place + 3]), strict=True):
                logprobs[row] = position if errors[row] is None else None
        return SamplerOutput(token_ids, logprobs, errors)


class _LogprobGroup:
    """Rows that want equally many log-probabilities. ``adjusted``: their logits change before the draw."""

    def __init__(self, rows: list[int], num_top: int, adjusted: bool, device: torch.device) -> None:
        self.rows, self.num_top, self.adjusted = rows, num_top, adjusted
        self.index = upload(torch.tensor(rows, dtype=torch.int64), device)

    def rows_of(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy, unless it is all rows."""
        return logits if len(self.rows) == len(logits) else logits.index_select(0, self.index)


class _Composition:
    """What a list of states means for a batch, as vectors beside the logits; made anew only when the list changes."""

    def __init__(self, states: list[SamplingState], vocab_size: int, device: torch.device) -> None:
        self.states = states
        self.errors = [state.fault(vocab_size) for state in states]
        # A faulty request stays in its row without any feature, so that the others keep theirs.
        params = [state.params for state in states]
        self.all_greedy = all(one.greedy for one in params)
        self._temperature, self._top_k, self._top_p, self._min_p = upload_arrays(
            [
                np.array([0.0 if one.greedy else one.temperature for one in params], dtype=np.float32),
                np.array([one.top_k for one in params], dtype=np.int64),
                np.array([one.top_p for one in params], dtype=np.float64),
                np.array([one.min_p for one in params], dtype=np.float64),
            ],
            device,
        )
        self._streams = seed_streams([state.request.seed for state in states])
        self.adjustments: list[Adjustment] = []
        sound = [(row, state) for row, state in enumerate(states) if self.errors[row] is None]
        for kind in ADJUSTMENTS:
            adjustment = kind.build(sound)
            if adjustment is not None:
                self.adjustments.append(adjustment)
        self.processors = [(row, state.processors) for row, state in sound if state.processors is not None]
        adjusted = {row for adjustment in self.adjustments for row in adjustment.rows}
        adjusted.update(row for row, _ in self.processors)
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, state in sound:
            if state.params.logprobs is not None:
                groups.setdefault((_num_top(state.params.logprobs, vocab_size), row in adjusted), []).append(row)
        self.logprob_groups = [_LogprobGroup(rows, *kind, device) for kind, rows in groups.items()]

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        positions = np.fromiter((state.num_outputs for state in self.states), np.uint64, len(self.states))
        (uniforms,) = upload_arrays([uniforms_at(self._streams, positions)], logits.device)
        return ops.sample(logits, self._temperature, self._top_k, self._top_p, self._min_p, uniforms)

    def filtered(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What ``draw`` draws from in some rows, of which ``logits`` holds the adjusted ones."""
        settings = (self._temperature, self._top_k, self._top_p, self._min_p)
        return ops.filter_logits(logits, *(setting.index_select(0, rows) for setting in settings))


def _num_top(num_logprobs: int, vocab_size: int) -> int:
    return vocab_size if num_logprobs == -1 else min(num_logprobs, vocab_size)


def _why(row: torch.Tensor) -> str:
    """Why no token could be drawn from a row."""
    if row.isnan().any():
        return NAN_LOGITS
    if row.isposinf().any():
        return "the logits hold infinity"
    return "no token is possible: all are masked"


def _top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int, normalized: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # A row that failed has token -1; what comes out for it is thrown away.
    ids, values, ranks = ops.top_logprobs(logits, token_ids.clamp(min=0), k)
    return ids, values if normalized else logits.gather(1, ids), ranks


def _positions(ids: torch.Tensor, values: torch.Tensor, ranks: torch.Tensor) -> list[PositionLogprobs]:
    return [
        PositionLogprobs(token_ids=row_ids, logprobs=row_values, rank=rank)
        for row_ids, row_values, rank in zip(ids.tolist(), values.tolist(), ranks.tolist(), strict=True)
    ]
