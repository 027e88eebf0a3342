"""A request as the scheduler sees it: tokens, progress, and nothing of text or tensors."""

from vllm_engine.core.kv_cache.hashing import BlockHasher, BlockHashes
from vllm_engine.messages import EngineRequest, PositionLogprobs
from vllm_engine.outputs import FinishReason


class Request:
    """The state of one request in the engine core.

    ``token_ids`` is prompt and output in one list. A step moves ``num_computed_tokens``, which counts steps under way,
    toward its end. Whether that is prefill or decode is of no interest but for the limits of prefills: what was known
    when the request began to be computed, or began again after a preemption, is its prefill.

    Where steps are scheduled before the ones under way have told their tokens, ``num_unknown_tokens`` follow
    ``token_ids`` already: sampled, and told later.
    """

    __slots__ = (
        "arrival_order",
        "block_hashes",
        "life",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prefill_tokens",
        "num_unknown_tokens",
        "prompt_logprobs",
        "request",
        "request_id",
        "scheduled_ts",
        "tenant",
        "token_ids",
        "wants_prompt_logprobs",
    )

    def __init__(
        self,
        request: EngineRequest,
        hasher: BlockHasher,
        block_size: int,
        arrival_order: int,
        *,
        max_model_len: int,
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.tenant = request.tenant
        self.token_ids = list(request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_unknown_tokens = 0
        self.num_prefill_tokens = len(self.token_ids)
        self.max_num_tokens = min(len(self.token_ids) + request.max_tokens, max_model_len)
        """Tokens, prompt and output, with which it ends at the latest."""
        self.life = 0
        """How often it began to run, and to wait. A step under way knows the one that it computes for."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when first scheduled."""
        self.num_preemptions = 0
        self.scheduled_ts = 0.0
        self.arrival_order = arrival_order
        self.block_hashes = BlockHashes(hasher, block_size, _name_salt(request))
        self.wants_prompt_logprobs = request.params.prompt_logprobs is not None
        self.prompt_logprobs: list[PositionLogprobs] = []

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.token_ids)

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens are missing from the cache that were known when it began: no token is sampled before."""
        return self.num_computed_tokens < self.num_prefill_tokens

    def end_at(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Why it ends with its last token, and by which stop token; None where it goes on."""
        wanted = self.request
        if token_id in wanted.stop_token_ids:
            is_eos = token_id in wanted.eos_token_ids and token_id not in (wanted.params.stop_token_ids or ())
            return "stop", None if is_eos else token_id
        if len(self.token_ids) >= self.max_num_tokens:
            return "length", None
        return None, None

    def begin(self, num_computed_tokens: int) -> None:
        """It runs from now on, behind so many tokens that are in the cache."""
        self.life += 1
        self.num_computed_tokens = num_computed_tokens
        self.num_prefill_tokens = len(self.token_ids)
        self.prompt_logprobs.clear()

    def start_over(self) -> None:
        """Nothing of it is in the cache any more: all tokens known when it begins again are to be computed again."""
        self.life += 1
        self.num_computed_tokens = 0
        self.num_unknown_tokens = 0
        self.num_prefill_tokens = len(self.token_ids)

    def has_waited_since(self, life: int) -> bool:
        """Whether it was sent back in the midst of a life, and still waits: what that computed is its next token."""
        return self.life == life + 1


def _name_salt(request: EngineRequest) -> str | None:
    """What the names of a request's blocks begin with. Embeddings, which its token ids do not show, belong to it: only
    requests with the very same ones share blocks. No client's salt holds a lone surrogate, so none can be like it.
    """
    embeds = request.prompt_embeds
    return request.cache_salt if embeds is None else f"{request.cache_salt or ''}\ud800{embeds.digest}"
