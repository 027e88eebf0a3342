"""A stand-in for the model runner whose "KV cache" holds, in every slot, the whole history of the token written there.

It raises as soon as a request would read a slot that does not hold its own history: a block shared wrongly, freed too
early, evicted while in use or reused without recomputation cannot stay unseen.
"""

from vllm_engine.execution.batch import BatchResult, ScheduledBatch
from vllm_engine.kv_layout import KVCacheLayout

History = tuple[str | None, tuple[int, ...]]


def next_token(token_ids: list[int], vocab_size: int) -> int:
    """The simulated model: a token that depends on all before it."""
    return hash(tuple(token_ids)) % vocab_size


class _Row:
    def __init__(self, salt: str | None, token_ids: list[int], blocks: list[list[int]], computed: int) -> None:
        self.salt = salt
        self.token_ids = list(token_ids)
        self.blocks = [list(group) for group in blocks]
        self.computed = computed


class SimulatedRunner:
    """Executes scheduled batches against the simulated cache."""

    def __init__(self, layout: KVCacheLayout, *, vocab_size: int = 50, max_tokens_per_step: int = 10**9) -> None:
        self.layout = layout
        self.vocab_size = vocab_size
        self.max_tokens_per_step = max_tokens_per_step
        self.slots: dict[tuple[int, int], tuple[int, History]] = {}
        self.rows: dict[str, _Row] = {}
        self.computed_tokens = 0

    def execute(self, batch: ScheduledBatch) -> BatchResult:
        """Write, then check every visible slot, then sample."""
        size = self.layout.block_size
        if batch.total_num_tokens > self.max_tokens_per_step:
            raise AssertionError("over the token budget")
        self.computed_tokens += batch.total_num_tokens
        for request_id in batch.removed:
            self.rows.pop(request_id, None)
        for request_id, blocks in batch.new_block_ids.items():
            for group, more in enumerate(blocks):
                self.rows[request_id].blocks[group] += more
        for new in batch.new_requests:
            if new.request.request_id in self.rows:
                raise AssertionError("a running request was announced as new")
            self.rows[new.request.request_id] = _Row(
                new.request.cache_salt, new.token_ids, new.block_ids, new.num_computed_tokens
            )
        for request_id, count in batch.num_scheduled_tokens.items():
            row = self.rows[request_id]
            for position in range(row.computed, row.computed + count):
                history = (row.salt, tuple(row.token_ids[: position + 1]))
                for group in range(len(self.layout.groups)):
                    block = row.blocks[group][position // size]
                    if block == 0:
                        raise AssertionError("a token is written to the null block")
                    self.slots[block, position % size] = (group, history)
        result = BatchResult()
        for request_id, count in batch.num_scheduled_tokens.items():
            row = self.rows[request_id]
            self._check_visible(request_id, row, row.computed)
            row.computed += count
            self._check_visible(request_id, row, row.computed - 1)
            if row.computed == len(row.token_ids):
                token = next_token(row.token_ids, self.vocab_size)
                row.token_ids.append(token)
                result.sampled[request_id] = [token]
        return result

    def _check_visible(self, request_id: str, row: _Row, position: int) -> None:
        for group, spec in enumerate(self.layout.groups):
            first = 0 if spec.sliding_window is None else max(0, position - spec.sliding_window + 1)
            for seen in range(first, position + 1):
                slot = (row.blocks[group][seen // self.layout.block_size], seen % self.layout.block_size)
                expected = (group, (row.salt, tuple(row.token_ids[: seen + 1])))
                if self.slots.get(slot) != expected:
                    raise AssertionError(f"{request_id} reads a foreign slot at position {seen} in group {group}")
