"""A request as the scheduler sees it: tokens, progress, and nothing of text or tensors."""

from vllm_engine.core.kv_cache.hashing import BlockHashes
from vllm_engine.messages import EngineRequest, PositionLogprobs


class Request:
    """The state of one request in the engine core.

    ``token_ids`` is prompt and output in one list. A step moves ``num_computed_tokens`` toward
    ``len(token_ids)``; whether that is prefill or decode is nobody's business.
    """

    __slots__ = (
        "arrival_order",
        "block_hashes",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "prompt_logprobs",
        "request",
        "request_id",
        "scheduled_ts",
        "token_ids",
        "wants_prompt_logprobs",
    )

    def __init__(self, request: EngineRequest, block_size: int, arrival_order: int) -> None:
        self.request = request
        self.request_id = request.request_id
        self.token_ids = list(request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when first scheduled."""
        self.num_preemptions = 0
        self.scheduled_ts = 0.0
        self.arrival_order = arrival_order
        self.block_hashes = BlockHashes(block_size, request.cache_salt)
        self.wants_prompt_logprobs = request.params.prompt_logprobs is not None
        self.prompt_logprobs: list[PositionLogprobs] = []

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key of the priority policy: lower priority value first, then earlier arrival."""
        return (self.request.priority, self.arrival_order)
