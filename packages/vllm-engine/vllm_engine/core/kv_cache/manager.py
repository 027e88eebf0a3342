"""``KVCacheManager``: gives requests their KV blocks, finds cached prefixes, takes blocks back."""

from dataclasses import dataclass

from vllm_engine.core.kv_cache.block_pool import NULL_BLOCK, BlockPool
from vllm_engine.core.kv_cache.layout import blocks_of_group
from vllm_engine.core.kv_cache.residency import BlockResidency
from vllm_engine.core.request import Request
from vllm_engine.kv_layout import KVCacheLayout, KVGroup


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Blocks that already hold the first ``num_tokens`` tokens of a request; ``blocks[group]`` in sequence order."""

    num_tokens: int
    blocks: list[list[int]]


class KVCacheManager:
    """Block tables of all requests, one table per KV group, over one pool of blocks."""

    def __init__(
        self, layout: KVCacheLayout, *, enable_prefix_caching: bool, residency: BlockResidency | None = None
    ) -> None:
        self.layout = layout
        self.residency = residency
        """Follows blocks, where that is asked for."""
        self.pool = BlockPool(layout.num_blocks, residency)
        self.enable_prefix_caching = enable_prefix_caching
        self._block_size = layout.block_size
        self._tables: dict[str, list[list[int]]] = {}
        self._num_registered: dict[str, int] = {}
        self._settled: dict[str, int] = {}
        """Tokens that a request can grow to while nothing about its blocks changes: most steps have nothing to do."""

    @property
    def usage(self) -> float:
        """Share of the blocks that requests hold, 0 to 1."""
        return self.pool.usage

    def looks_up(self, request: Request) -> bool:
        """Whether a request may begin with cached blocks: not when the logits of its whole prompt are wanted."""
        return self.enable_prefix_caching and not request.wants_prompt_logprobs

    def cached_prefix(self, request: Request) -> CachedPrefix:
        """The longest cached beginning of a request, in whole blocks, that leaves at least one token to compute.

        A full-attention group needs every block of the prefix; a sliding-window group only those which the next
        token can see. Changes nothing.
        """
        groups = self.layout.groups
        if not self.looks_up(request):
            return CachedPrefix(0, [[] for _ in groups])
        limit = (request.num_tokens - 1) // self._block_size
        names = request.block_hashes.upto(request.token_ids, limit)
        lookup = self.pool.lookup
        found: list[list[int | None]] = []
        for index, group in enumerate(groups):
            row: list[int | None] = []
            for name in names[:limit]:
                block = lookup((name, index))
                if block is None and group.sliding_window is None:
                    break
                row.append(block)
            limit = min(limit, len(row))
            found.append(row)
        num_blocks = self._longest_visible(found, limit)
        blocks = [
            [NULL_BLOCK if i < first or block is None else block for i, block in enumerate(row[:num_blocks])]
            for row, group in zip(found, groups, strict=True)
            for first in [self._first_visible_block(group, num_blocks * self._block_size)]
        ]
        return CachedPrefix(num_blocks * self._block_size, blocks)

    def _longest_visible(self, found: list[list[int | None]], limit: int) -> int:
        """Largest number of blocks up to ``limit`` of which every sliding-window group has those that can be seen."""
        runs: list[tuple[KVGroup, list[int]]] = []  # length of the run of present blocks that ends at each place
        for group, row in zip(self.layout.groups, found, strict=True):
            if group.sliding_window is not None:
                ending = [0]
                for block in row[:limit]:
                    ending.append(0 if block is None else ending[-1] + 1)
                runs.append((group, ending))
        while limit and any(
            ending[limit] < limit - self._first_visible_block(group, limit * self._block_size) for group, ending in runs
        ):
            limit -= 1
        return limit

    def _first_visible_block(self, group: KVGroup, position: int) -> int:
        """First block that the token at ``position`` can see."""
        if group.sliding_window is None:
            return 0
        return max(0, position - group.sliding_window + 1) // self._block_size

    def allocate(self, request: Request, num_tokens: int, prefix: CachedPrefix | None = None) -> list[list[int]] | None:
        """Make room for the next ``num_tokens`` tokens of a request.

        Args:
            request: its ``num_computed_tokens`` tokens are in the cache, or will be with ``prefix``.
            num_tokens: tokens to compute in this step.
            prefix: the cached blocks to start from, for a request that holds none yet.

        Returns:
            The new blocks per group, cached ones included, to append to the block tables; empty when it needs no more.
            None when there is not enough room, and then nothing has changed for this request but blocks that slid out
            of its windows.
        """
        start = prefix.num_tokens if prefix is not None else request.num_computed_tokens
        if start + num_tokens <= self._settled.get(request.request_id, 0):
            return []
        tables = self._tables.get(request.request_id)
        if tables is None:
            tables = [[] for _ in self.layout.groups]
        else:
            self._release_invisible(tables, start)
        reused = prefix.blocks if prefix is not None else [[] for _ in tables]
        blocks_total = -(-(start + num_tokens) // self._block_size)
        missing = [blocks_total - len(table) - len(shared) for table, shared in zip(tables, reused, strict=True)]
        shared_blocks = [block for shared in reused for block in shared if block != NULL_BLOCK]
        revived = sum(map(self.pool.is_evictable, shared_blocks))
        if sum(missing) + revived > self.pool.num_available:
            return None
        for block in shared_blocks:
            self.pool.share(block)
        added = []
        for table, shared, count in zip(tables, reused, missing, strict=True):
            new = [*shared, *self.pool.allocate(count)]
            table.extend(new)
            added.append(new)
        self._tables[request.request_id] = tables
        if self.enable_prefix_caching:
            self._register_full_blocks(request, tables, start + num_tokens)
        self._settled[request.request_id] = self._settled_until(start, start + num_tokens)
        return added

    def _settled_until(self, start: int, num_tokens: int) -> int:
        """Tokens that a request can grow to from ``num_tokens``, of which a step began at ``start``, before its last
        block is full or its first one leaves a window.
        """
        rest = num_tokens % self._block_size
        until = num_tokens - rest + self._block_size - 1 if rest else num_tokens
        for group in self.layout.groups:
            if group.sliding_window is not None:
                first = self._first_visible_block(group, start)
                until = min(until, (first + 1) * self._block_size + group.sliding_window - 1)
        return until

    def blocks_to_start(self, request: Request, prefix: CachedPrefix, *, step_tokens: int) -> int:
        """Blocks that a waiting request takes from the available ones until all tokens known of it are computed.

        Blocks of ``prefix`` that others hold are free of charge, where the request keeps them.
        """
        return sum(
            blocks_of_group(group, self._block_size, request.num_tokens, step_tokens)
            - (0 if group.sliding_window is not None else sum(not self.pool.is_evictable(block) for block in shared))
            for group, shared in zip(self.layout.groups, prefix.blocks, strict=True)
        )

    def blocks_to_come(self, request: Request, *, step_tokens: int) -> int:
        """Blocks that a running request still takes until all tokens known of it are computed."""
        return sum(
            max(0, blocks_of_group(group, self._block_size, request.num_tokens, step_tokens) - num_held)
            for group, table in zip(self.layout.groups, self._tables[request.request_id], strict=True)
            for num_held in [len(table) - self._first_visible_block(group, request.num_computed_tokens)]
        )

    def _release_invisible(self, tables: list[list[int]], position: int) -> None:
        """Give back blocks that no token from ``position`` on can see."""
        for group, table in zip(self.layout.groups, tables, strict=True):
            released = []
            for index in range(self._first_visible_block(group, position) - 1, -1, -1):
                if table[index] == NULL_BLOCK:
                    break
                released.append(table[index])
                table[index] = NULL_BLOCK
            self.pool.release(released)

    def _register_full_blocks(self, request: Request, tables: list[list[int]], num_tokens: int) -> None:
        """Make blocks findable that the steps until now fill, this one included.

        They are filled before anyone reads them: in every layer, all keys and values of a step are written
        before its attention runs, so even a request of the same step may share them. A block with a token that a step
        under way has yet to tell has no name; it gets one later.
        """
        full = min(num_tokens, request.num_tokens) // self._block_size
        first = self._num_registered.get(request.request_id, 0)
        if full <= first:
            return
        names = request.block_hashes.upto(request.token_ids, full)
        for group, table in enumerate(tables):
            for index in range(first, full):
                if table[index] != NULL_BLOCK:
                    self.pool.register(table[index], (names[index], group))
        self._num_registered[request.request_id] = full

    def free(self, request: Request) -> None:
        """Give back all blocks of a request. Full ones stay cached until evicted, the tail of a sequence first."""
        tables = self._tables.pop(request.request_id, [])
        if tables and self.enable_prefix_caching:
            self._register_full_blocks(request, tables, request.num_computed_tokens)
        self._num_registered.pop(request.request_id, None)
        self._settled.pop(request.request_id, None)
        for table in tables:
            self.pool.release(table[::-1])

    def forget_prefixes(self) -> None:
        """Empty the prefix cache. Requests keep the blocks that they hold."""
        self.pool.forget_all()

    def check_invariants(self) -> None:
        """Raise ``RuntimeError`` unless free + used + cached blocks are the pool and all references are held."""
        held: dict[int, int] = {}
        for tables in self._tables.values():
            for table in tables:
                for block in table:
                    if block != NULL_BLOCK:
                        held[block] = held.get(block, 0) + 1
        self.pool.check_invariants(held)
