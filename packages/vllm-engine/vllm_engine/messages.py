"""The typed messages between the frontend and the engine core. They cross a process boundary as msgpack."""

from typing import Any, Literal, get_args

import msgspec

from vllm_engine.errors import ConfigError
from vllm_engine.outputs import FinishReason
from vllm_engine.params import SamplingParams

EmbedsDtype = Literal["float16", "bfloat16", "float32"]
EMBEDS_ITEM_BYTES: dict[EmbedsDtype, int] = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes of one value."""

SleepTag = Literal["weights", "kv_cache"]
SLEEP_TAGS: tuple[SleepTag, ...] = get_args(SleepTag)
"""What is away while an engine sleeps, in the order in which it comes back."""
SLEEP_LEVELS = (0, 1, 2)
"""0 only holds requests; with 1 weights are kept in main memory, with 2 they are not."""


class EmbedsSpec(msgspec.Struct, frozen=True, array_like=True):
    """What a row of prompt embeddings is for a model: ``width`` values of type ``dtype``."""

    width: int
    dtype: EmbedsDtype


class PromptEmbeds(msgspec.Struct, frozen=True, array_like=True):
    """A prompt as rows that stand in for the output of the model's token embedding.

    ``data`` holds the values of ``shape`` (tokens, width), row after row, little-endian. ``digest`` names the content
    for the prefix cache; it is empty until the frontend has checked the values.
    """

    data: bytes
    shape: tuple[int, int]
    dtype: EmbedsDtype
    digest: str = ""


class EngineRequest(msgspec.Struct, frozen=True, array_like=True):
    """One completion to compute: validated, tokenised, all defaults filled in. ``n`` is 1 here: the frontend fans out.

    ``request_id`` is made by the frontend, unique for the life of the engine, and never a client's text.
    ``stop_token_ids`` holds the stop tokens and, unless ignored, the end-of-sequence tokens; ``eos_token_ids`` tells
    which of them end without a stop reason. ``seed`` is set for every request: drawn at random where none was asked.
    ``bad_words_token_ids`` holds each forbidden word in each of its spellings as token ids.
    ``max_tokens`` is at least 1 and such that prompt and output fit the model.
    Lower ``priority`` runs first (policy ``priority`` only). ``arrival_time`` is ``time.monotonic()`` in seconds.
    ``prompt_embeds``, in the model's own data type, is the prompt in place of ``prompt_token_ids``, which then holds a
    placeholder for each row. ``tenant`` names who asks, for fair shares: a digest, never a key itself.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    eos_token_ids: list[int]
    bad_words_token_ids: list[list[int]]
    priority: int = 0
    cache_salt: str | None = None
    arrival_time: float = 0.0
    prompt_embeds: PromptEmbeds | None = None
    tenant: str = ""

    @property
    def known_prompt(self) -> list[int]:
        """The ids of the prompt's tokens: none where it was given as embeddings."""
        return self.prompt_token_ids if self.prompt_embeds is None else []


class PositionLogprobs(msgspec.Struct, array_like=True):
    """Log-probabilities at one position. Entry 0 is the token that stands there, the others the most likely, in order.

    ``rank`` is the 1-based rank of entry 0 in the whole vocabulary.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class RequestUpdate(msgspec.Struct, array_like=True):
    """What one step brought for one request.

    ``prompt_logprobs`` comes once, with the first new token, and has ``num_prompt_tokens - 1`` entries, for the
    second prompt token on. ``stop_reason`` is the stop token id, None for an end-of-sequence token.
    ``error`` tells what went wrong when ``finish_reason`` is ``error``.
    """

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logprobs: list[PositionLogprobs] | None = None
    prompt_logprobs: list[PositionLogprobs] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ts: float = 0.0
    error: str | None = None


class HistogramCounts(msgspec.Struct, array_like=True):
    """Values counted by upper bound, the last of them without one, and their sum."""

    counts: list[int]
    sum: float


class KVResidency(msgspec.Struct, array_like=True):
    """Seconds in the life of the KV blocks that are followed: from allocation to eviction, from the last use to
    eviction, and between uses.
    """

    lifetime: HistogramCounts
    idle_before_evict: HistogramCounts
    reuse_gap: HistogramCounts


class SchedulerStats(msgspec.Struct, array_like=True):
    """State of the scheduler and the cache after a step. Counters count since start."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    """Tokens looked up in the prefix cache."""
    prefix_cache_hits: int = 0
    """Tokens found there."""
    num_preemptions: int = 0
    num_steps: int = 0
    sleep_level: int | None = None
    """None while the engine is awake."""
    num_corrupted: int = 0
    """Requests that ended because their logits held NaN."""
    step_tokens: HistogramCounts | None = None
    """Steps by the tokens that they computed."""
    kv_residency: KVResidency | None = None
    """None unless KV blocks are followed."""


class EngineOutputs(msgspec.Struct, array_like=True, tag="outputs"):
    """All that one step brought. ``timestamp`` is ``time.monotonic()`` in seconds, the same clock in all processes."""

    updates: list[RequestUpdate]
    timestamp: float
    stats: SchedulerStats


class EngineReady(msgspec.Struct, array_like=True, tag="ready"):
    """The engine core has loaded its model. ``phases`` holds the seconds of each start-up phase.

    ``prompt_embeds`` is None where prompts may not be given as embeddings.
    """

    max_model_len: int
    vocab_size: int
    num_kv_blocks: int
    block_size: int
    phases: dict[str, float]
    prompt_embeds: EmbedsSpec | None = None
    max_num_seqs: int = 0
    """Most requests that run at once."""


class EngineFailed(msgspec.Struct, array_like=True, tag="failed"):
    """The engine core ends: ``message`` for the user. ``config_field`` names the setting at fault, if one is; empty for
    settings that are at fault together.
    """

    message: str
    config_field: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "EngineFailed":
        """What an error that ended the core tells its users."""
        if isinstance(error, ConfigError):
            return cls(str(error), error.field or "")
        return cls(f"{type(error).__name__}: {error}")


class RpcResult(msgspec.Struct, array_like=True, tag="result"):
    """Answer to an ``RpcCall``: ``value`` or ``error``."""

    call_id: int
    value: Any = None
    error: str | None = None
    bad_argument: str | None = None
    """Which one is at fault, where the caller is to blame for ``error``."""


class AddRequests(msgspec.Struct, array_like=True, tag="add"):
    """New requests for the scheduler. ``shared_embeds`` is the prompt of all of them, so that it is sent once."""

    requests: list[EngineRequest]
    shared_embeds: PromptEmbeds | None = None

    @classmethod
    def packed(cls, requests: list[EngineRequest]) -> "AddRequests":
        """The message for some requests: embeddings that several of them share are taken out of each."""
        embeds = requests[0].prompt_embeds if len(requests) > 1 else None
        if embeds is None or any(request.prompt_embeds is not embeds for request in requests):
            return cls(requests)
        return cls([msgspec.structs.replace(request, prompt_embeds=None) for request in requests], embeds)

    def unpacked(self) -> list[EngineRequest]:
        """The requests as they were before ``packed``."""
        if self.shared_embeds is None:
            return self.requests
        return [msgspec.structs.replace(request, prompt_embeds=self.shared_embeds) for request in self.requests]


class AbortRequests(msgspec.Struct, array_like=True, tag="abort"):
    """Requests whose results nobody wants any more; unknown ids are ignored."""

    request_ids: list[str]


class RpcCall(msgspec.Struct, array_like=True, tag="call"):
    """A control call by name, answered by an ``RpcResult`` with the same ``call_id``."""

    call_id: int
    method: str
    args: list[Any] = []


class Ping(msgspec.Struct, array_like=True, tag="ping"):
    """Asks the core for a ``Pong``."""


class Pong(msgspec.Struct, array_like=True, tag="pong"):
    """The core's loop goes round: it answers a ``Ping`` between two steps."""


class Shutdown(msgspec.Struct, array_like=True, tag="shutdown"):
    """End the engine core now."""


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """A client beside the core's parent is there: it wants ``EngineReady`` as soon as that is known."""


class ClientGone(msgspec.Struct, array_like=True, tag="gone"):
    """The parent tells that the process of a client has ended: nobody waits for its requests any more."""

    client: str


ToCore = AddRequests | AbortRequests | RpcCall | Ping | Shutdown | Hello | ClientGone
FromCore = EngineOutputs | EngineReady | EngineFailed | RpcResult | Pong
