"""Scheduler and simulated runner in a loop."""

import time
from collections.abc import Callable

from vllm_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from vllm_engine.config.groups.device import DeviceConfig
from vllm_engine.core.limits import EngineLimits
from vllm_engine.core.scheduler import Scheduler
from vllm_engine.execution.batch import BatchResult, ScheduledBatch
from vllm_engine.kv_layout import KVCacheLayout, KVGroup
from vllm_engine.messages import EngineRequest, RequestUpdate
from vllm_engine.params import SamplingParams

from .simulated_runner import SimulatedRunner, next_token

FULL = (KVGroup((0, 1), None),)
SLIDING = (KVGroup((0,), 5),)
HYBRID = (KVGroup((0,), None), KVGroup((1,), 6), KVGroup((2,), 11))


def engine_request(
    request_id: str,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    priority: int = 0,
    salt: str | None = None,
    tenant: str = "",
) -> EngineRequest:
    return EngineRequest(request_id, prompt, SamplingParams(), max_tokens, 0, [], [], [], priority, salt, tenant=tenant)


class Harness:
    """Scheduler and simulated runner in a loop; collects what each request got."""

    def __init__(
        self,
        groups: tuple[KVGroup, ...] = FULL,
        *,
        num_blocks: int = 100,
        block_size: int = 4,
        budget: int = 64,
        max_num_seqs: int = 16,
        max_model_len: int = 128,
        prefix_caching: bool = True,
        hash_algo: str = "sha256",
        config: SchedulerConfig | None = None,
        ahead: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            ahead: steps that are scheduled and computed before the tokens of the one before them are told.
            clock: seconds for the policy.
        """
        layout = KVCacheLayout(num_blocks, block_size, groups)
        self.scheduler = Scheduler(
            EngineConfig(
                device=DeviceConfig(device="cpu"),  # whatever the machine has: policies go by it
                scheduler=config or SchedulerConfig(),
                cache=CacheConfig(enable_prefix_caching=prefix_caching, prefix_caching_hash_algo=hash_algo),
            ),
            EngineLimits(max_model_len, budget, max_num_seqs, layout),
            clock,
        )
        self.runner = SimulatedRunner(layout, max_tokens_per_step=budget)
        self.updates: dict[str, list[RequestUpdate]] = {}
        self.batches: list[ScheduledBatch] = []
        self.results: list[BatchResult] = []
        self._ahead = ahead
        self._untold = 0

    def step(self) -> list[RequestUpdate]:
        batch = self.scheduler.schedule()
        self.batches.append(batch)
        self.results.append(self.runner.execute(batch))
        self._untold += 1
        self.scheduler.kv.check_invariants()
        return self.tell() if self._untold > self._ahead else []

    def tell(self) -> list[RequestUpdate]:
        """Let the scheduler know of the oldest step that it does not know of."""
        updates = self.scheduler.update(self.batches[-self._untold], self.results[-self._untold])
        self._untold -= 1
        self.scheduler.kv.check_invariants()
        for update in updates:
            self.updates.setdefault(update.request_id, []).append(update)
        return updates

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished():
                while self._untold:
                    self.tell()
                return
            self.step()
        raise AssertionError("requests do not come to an end")

    def output(self, request_id: str) -> list[int]:
        return [token for update in self.updates[request_id] for token in update.new_token_ids]


def expected_output(prompt: list[int], count: int, vocab_size: int = 50) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, vocab_size))
    return tokens[len(prompt) :]
