"""What is told of the lives of KV blocks, against a history that is kept by hand."""

import random
from itertools import pairwise

import pytest

from tests.engine.core.harness import FULL, engine_request
from tests.engine.core.simulated_runner import SimulatedRunner
from vllm_engine.config import EngineArgs
from vllm_engine.core.kv_cache.block_pool import BlockPool
from vllm_engine.core.kv_cache.residency import MOST_GAPS, BlockResidency
from vllm_engine.core.limits import EngineLimits
from vllm_engine.core.scheduler import Scheduler
from vllm_engine.errors import ConfigError
from vllm_engine.kv_layout import KVCacheLayout

BOUNDS = [float(second) for second in range(1, 400)]


def key(number: int) -> tuple[bytes, int]:
    return number.to_bytes(8, "little"), 0


def test_every_life_and_every_gap_is_counted_as_it_was() -> None:
    """Random uses of a small pool, one a second: each block's history is a list of moments."""
    now = 0.0
    residency = BlockResidency(1.0, BOUNDS, clock=lambda: now)
    pool = BlockPool(6, residency)
    rng = random.Random(5)
    history: dict[int, list[float]] = {}  # moments by block: allocated, used, used, ...
    names: dict[int, int] = {}  # what is cached, by block
    lives, idles, gaps = [], [], []
    for number in range(300):
        now += 1
        block = pool.lookup(key(rng.choice(list(names.values())))) if names and rng.random() < 0.4 else None
        if block is not None:
            pool.share(block)
            history[block].append(now)
        else:
            (block,) = pool.allocate(1)
            if block in names:  # it held something else until now
                past = history[block]
                lives.append(now - past[0])
                idles.append(now - past[-1])
                gaps += [after - before for before, after in pairwise(past)][-MOST_GAPS:]
                del names[block]
            history[block] = [now]
            pool.register(block, key(number))
            names[block] = number
        pool.release([block])
    counts = residency.counts()
    for told, values in ((counts.lifetime, lives), (counts.idle_before_evict, idles), (counts.reuse_gap, gaps)):
        assert len(values) > 50
        assert told.sum == sum(values)
        assert told.counts == [sum(value == bound for value in values) for bound in BOUNDS] + [0]


def test_what_was_never_cached_and_what_is_forgotten_is_not_evicted() -> None:
    residency = BlockResidency(1.0, BOUNDS)
    pool = BlockPool(3, residency)
    for _ in range(4):
        pool.release(pool.allocate(2))
    blocks = pool.allocate(2)
    for block in blocks:
        pool.register(block, key(block))
    pool.release(blocks)
    pool.forget_all()
    pool.release(pool.allocate(2))
    assert residency.counts().lifetime.counts == [0] * 400


def test_a_share_of_blocks_is_followed() -> None:
    draws = iter([0.3, 0.2, 0.1, 0.9, *[0.5] * 4])
    residency = BlockResidency(0.25, BOUNDS, clock=lambda: 0.0, draw=lambda: next(draws))
    pool = BlockPool(5, residency)
    blocks = pool.allocate(4)
    for block in blocks:
        pool.register(block, key(block))
    pool.release(blocks)
    pool.allocate(4)
    assert sum(residency.counts().lifetime.counts) == 2


def test_an_engine_tells_of_its_blocks_where_that_is_asked_for() -> None:
    layout = KVCacheLayout(6, 4, FULL)
    for settings, share in (({}, None), ({"kv_cache_metrics": True, "kv_cache_metrics_sample": 1.0}, 1.0)):
        config = EngineArgs("model", **settings).create_config()
        scheduler = Scheduler(config, EngineLimits(64, 64, 4, layout))
        runner = SimulatedRunner(layout, max_tokens_per_step=64)
        for number in range(3):
            scheduler.add(engine_request(f"r{number}", [number] * 16, max_tokens=1))
            batch = scheduler.schedule()
            scheduler.update(batch, runner.execute(batch))
        stats = scheduler.stats()
        assert stats.step_tokens is not None and (sum(stats.step_tokens.counts), stats.step_tokens.sum) == (3, 48)
        if share is None:
            assert stats.kv_residency is None
        else:  # the second and third prompt took the places of four full blocks each, but one that was still free
            assert stats.kv_residency is not None
            assert sum(stats.kv_residency.lifetime.counts) == 7
    with pytest.raises(ConfigError, match="needs kv_cache_metrics"):
        EngineArgs("model", kv_cache_metrics_sample=0.5).create_config()
