"""``InputBatch``: the requests of the running batch as rows of numpy arrays that persist from step to step."""

from collections.abc import Iterable

import numpy as np

from vllm_engine.execution.batch import NewRequest
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.sampling.sampler import SamplingState


class InputBatch:
    """Rows of tokens, progress and block tables. A step changes only what is new.

    A row is written whole when a request enters it, so nothing of the request before can shine through. What belongs
    to sampling lives in the request's ``SamplingState`` and not in a row.
    """

    def __init__(self, layout: KVCacheLayout, *, max_num_seqs: int, max_model_len: int) -> None:
        """Arrays for ``max_num_seqs`` rows of up to ``max_model_len`` tokens."""
        self.block_size = layout.block_size
        max_blocks = -(-max_model_len // layout.block_size)
        # +1: the token sampled at the last position is kept, though never computed.
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int64)
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.last_is_unknown = np.zeros(max_num_seqs, dtype=np.bool_)
        """Rows whose last token is sampled, and still on its way from the device."""
        self.chosen_place = np.zeros(max_num_seqs, dtype=np.int64)
        """Where such a token is among those of its step, as the device has them."""
        self.block_tables = [np.zeros((max_num_seqs, max_blocks), dtype=np.int32) for _ in layout.groups]
        self.num_blocks = np.zeros((max_num_seqs, len(layout.groups)), dtype=np.int64)
        self.states: list[SamplingState | None] = [None] * max_num_seqs
        self.wants_prompt_logprobs: dict[str, int] = {}
        """Requests whose prompt logprobs are due: id -> number of prompt tokens."""
        self.prompt_embeds: dict[int, np.ndarray] = {}
        """By row, as uint8 [prompt tokens, bytes of a row]: prompts given as embeddings, until they are computed."""
        self._row_of: dict[str, int] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    def rows_of(self, request_ids: Iterable[str]) -> np.ndarray:
        """The rows where requests stand, int64."""
        return np.array([self._row_of[request_id] for request_id in request_ids], dtype=np.int64)

    def add(self, new: NewRequest, state: SamplingState) -> None:
        """Give a request a row and fill it."""
        row = self._free_rows.pop()
        request_id = new.request.request_id
        self._row_of[request_id] = row
        count = len(new.token_ids)
        self.token_ids[row, :count] = new.token_ids
        self.num_tokens[row] = count
        self.num_computed_tokens[row] = new.num_computed_tokens
        self.last_is_unknown[row] = False
        self.num_blocks[row] = 0
        self.append_blocks(request_id, new.block_ids)
        self.states[row] = state
        if new.wants_prompt_logprobs:
            self.wants_prompt_logprobs[request_id] = len(new.request.prompt_token_ids)
        embeds = new.request.prompt_embeds
        # Begun again after a preemption, a request may find all of its prompt in the prefix cache.
        if embeds is not None and new.num_computed_tokens < embeds.shape[0]:
            self.prompt_embeds[row] = np.frombuffer(embeds.data, dtype=np.uint8).reshape(embeds.shape[0], -1)

    def append_blocks(self, request_id: str, block_ids: list[list[int]]) -> None:
        """Extend the block tables of a request, one list of blocks per group."""
        row = self._row_of[request_id]
        for group, blocks in enumerate(block_ids):
            if blocks:
                start = self.num_blocks[row, group]
                self.block_tables[group][row, start : start + len(blocks)] = blocks
                self.num_blocks[row, group] = start + len(blocks)

    def append_unknown(self, rows: np.ndarray) -> None:
        """Count one more token in each of some rows, in the order in which they are drawn; ``tell`` tells them."""
        self.token_ids[rows, self.num_tokens[rows]] = 0
        self.num_tokens[rows] += 1
        self.last_is_unknown[rows] = True
        self.chosen_place[rows] = np.arange(len(rows))

    def tell(self, rows: np.ndarray, states: list[SamplingState], token_ids: list[int]) -> None:
        """The tokens of ``append_unknown``, for rows that still belong to the request of that time."""
        held = [self.states[row] for row in rows.tolist()]
        if held != states:  # compares by identity: a request has left meanwhile
            still = [place for place, state in enumerate(states) if held[place] is state]
            rows, states, token_ids = rows[still], [states[i] for i in still], [token_ids[i] for i in still]
        self.token_ids[rows, self.num_tokens[rows] - 1] = token_ids
        self.last_is_unknown[rows] = False
        for state, token_id in zip(states, token_ids, strict=True):
            state.append(token_id)

    def forget_computed_embeds(self) -> None:
        """Let go of the embeddings of prompts that are computed: the steps after cost nothing more."""
        for row in [row for row, embeds in self.prompt_embeds.items() if self.num_computed_tokens[row] >= len(embeds)]:
            del self.prompt_embeds[row]

    def remove(self, request_id: str) -> None:
        """Free the row of a request; an id that has none is ignored."""
        row = self._row_of.pop(request_id, None)
        if row is None:
            return
        self.states[row] = None
        self.prompt_embeds.pop(row, None)
        self.wants_prompt_logprobs.pop(request_id, None)
        self.num_tokens[row] = 0
        self.num_computed_tokens[row] = 0
        self.last_is_unknown[row] = False
        self._free_rows.append(row)

    def clear(self) -> None:
        """Free all rows."""
        for request_id in list(self._row_of):
            self.remove(request_id)
