"""The pool of KV blocks: who uses which, which are free, and which free ones still hold a known prefix."""

from collections import OrderedDict
from heapq import heapify, heappop, heappush

from vllm_engine.core.kv_cache.hashing import BlockHash
from vllm_engine.core.kv_cache.residency import BlockResidency

NULL_BLOCK = 0

CacheKey = tuple[BlockHash, int]
"""A block's content: hash of its tokens and all before them, and the KV group that the block belongs to."""


class BlockPool:
    """Reference-counted blocks with LRU eviction of cached ones.

    Each block but the null block is in exactly one state, derived from where it stands:

    * used: ``ref_counts[b] > 0``; it may be registered in the prefix cache at the same time;
    * cached: no user, but its content is registered; it waits in ``_evictable``, least recently used first;
    * free: neither.

    So free + cached + used = ``num_blocks - 1``. All operations are O(1) per block, but for the order of the free ones.

    The lowest free block is used first, so blocks of a request mostly stand side by side: on a CPU, attention reads
    scattered ones from memory in half as much time again. And a pool touches no more memory than was once in use.
    """

    def __init__(self, num_blocks: int, residency: BlockResidency | None = None) -> None:
        """``num_blocks`` counts the null block, which is never handed out. ``residency`` is told of their lives."""
        self.num_blocks = num_blocks
        self._residency = residency
        self._ref_counts = [0] * num_blocks
        self._keys: list[CacheKey | None] = [None] * num_blocks
        self._free = list(range(1, num_blocks))  # a heap
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._cached: dict[CacheKey, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can hand out, evicting cached ones where needed."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that some request holds."""
        return self.num_blocks - 1 - self.num_available

    @property
    def usage(self) -> float:
        """Used share of the pool, 0 to 1."""
        return self.num_used / max(1, self.num_blocks - 1)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks with one reference each. The caller has checked ``num_available``."""
        blocks = []
        for _ in range(count):
            if self._free:
                block = heappop(self._free)
            else:
                block, _ = self._evictable.popitem(last=False)
                self._forget(block)
            if self._residency is not None:
                self._residency.allocated(block)
            self._ref_counts[block] = 1
            blocks.append(block)
        return blocks

    def lookup(self, key: CacheKey) -> int | None:
        """The block that holds this content, if it is cached."""
        return self._cached.get(key)

    def is_evictable(self, block: int) -> bool:
        """Whether using this block takes one from ``num_available``."""
        return block in self._evictable

    def share(self, block: int) -> None:
        """One more user of a cached block."""
        if self._ref_counts[block] == 0:
            del self._evictable[block]
        if self._residency is not None:
            self._residency.used(block)
        self._ref_counts[block] += 1

    def register(self, block: int, key: CacheKey) -> None:
        """Make a used, full block findable. The first block with some content wins; copies stay unregistered."""
        if key not in self._cached and self._keys[block] is None:
            self._cached[key] = block
            self._keys[block] = key

    def release(self, blocks: list[int]) -> None:
        """Drop one reference of each. Pass a sequence's blocks last first: its tail is then evicted before its head."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._keys[block] is None:
                    heappush(self._free, block)
                else:
                    self._evictable[block] = None

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks in use stay with their users."""
        self._cached.clear()
        self._keys = [None] * self.num_blocks
        self._free.extend(self._evictable)
        heapify(self._free)
        self._evictable.clear()
        if self._residency is not None:
            self._residency.forget_all()

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None
            if self._residency is not None:
                self._residency.evicted(block)

    def check_invariants(self, held: dict[int, int]) -> None:
        """Compare the books with who really holds what.

        Args:
            held: block -> number of requests that hold it, for every block held.

        Raises:
            RuntimeError: when a block is lost, counted wrongly or in two states at once.
        """
        free, evictable = set(self._free), set(self._evictable)
        used = {block for block in range(1, self.num_blocks) if self._ref_counts[block] > 0}
        if len(free) != len(self._free) or free & evictable or free & used or evictable & used:
            raise RuntimeError("a KV block is in two states at once")
        if len(free) + len(evictable) + len(used) != self.num_blocks - 1:
            raise RuntimeError("free + cached + used KV blocks do not add up to the pool")
        for block in used | set(held):
            if self._ref_counts[block] != held.get(block, 0):
                raise RuntimeError(
                    f"KV block {block} has {self._ref_counts[block]} references, held by {held.get(block, 0)}"
                )
        if any(self._keys[block] is None for block in evictable) or any(self._keys[block] for block in free):
            raise RuntimeError("a free KV block is registered, or a cached one is not")
        if any(self._keys[block] != key for key, block in self._cached.items()):
            raise RuntimeError("the prefix cache points at a block with other content")
