"""What a request holds after every step, against the blocks that its tokens and windows need."""

import random

import pytest

from tests.engine.core.harness import FULL, HYBRID, SLIDING, engine_request
from vllm_engine.core.kv_cache.hashing import block_hasher
from vllm_engine.core.kv_cache.manager import KVCacheManager
from vllm_engine.core.request import Request
from vllm_engine.kv_layout import KVCacheLayout, KVGroup


def blocks_needed(group: KVGroup, start: int, end: int, block_size: int) -> int:
    """Blocks of positions that a step over positions ``start`` to ``end`` writes or sees."""
    first = 0 if group.sliding_window is None else max(0, start - group.sliding_window + 1)
    return len({position // block_size for position in range(first, end)})


@pytest.mark.parametrize("groups", [FULL, SLIDING, HYBRID])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_request_holds_what_its_step_needs_and_no_block_more(
    groups: tuple[KVGroup, ...], block_size: int, prefix_caching: bool
) -> None:
    rng = random.Random(block_size)
    manager = KVCacheManager(KVCacheLayout(400, block_size, groups), enable_prefix_caching=prefix_caching)
    prompt = [rng.randrange(100) for _ in range(13)]
    request = Request(engine_request("r", prompt), block_hasher("sha256"), block_size, 1, max_model_len=128)
    tables: list[list[int]] = [[] for _ in groups]
    for _ in range(80):
        count = max(1, min(request.num_tokens - request.num_computed_tokens, rng.randrange(1, 9)))
        start, end = request.num_computed_tokens, request.num_computed_tokens + count
        added = manager.allocate(request, count)
        assert added is not None
        for table, blocks in zip(tables, added or [[] for _ in groups], strict=True):
            table.extend(blocks)
        assert all(len(table) == -(-end // block_size) for table in tables)
        assert manager.pool.num_used == sum(blocks_needed(group, start, end, block_size) for group in groups)
        manager.check_invariants()
        request.num_computed_tokens = end
        if end == request.num_tokens:
            request.token_ids.append(rng.randrange(100))
    if prefix_caching:
        again = Request(
            engine_request("again", list(request.token_ids)), block_hasher("sha256"), block_size, 2, max_model_len=128
        )
        assert manager.cached_prefix(again).num_tokens == (again.num_tokens - 1) // block_size * block_size
    manager.free(request)
    assert manager.pool.num_used == 0


def test_blocks_of_a_request_stand_side_by_side_however_they_came_back() -> None:
    manager = KVCacheManager(KVCacheLayout(33, 4, FULL), enable_prefix_caching=False)
    requests = [
        Request(engine_request(f"r{number}", [1] * 16), block_hasher("sha256"), 4, number, max_model_len=128)
        for number in range(8)
    ]
    for request in requests:
        manager.allocate(request, 16)
    random.Random(0).shuffle(requests)
    for request in requests:
        manager.free(request)
    tables = [manager.allocate(request, 16) for request in requests]
    assert tables == [[list(range(first, first + 4))] for first in range(1, 33, 4)]
    manager.check_invariants()
