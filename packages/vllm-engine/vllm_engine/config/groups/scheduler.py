"""How requests share the steps of the engine."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_MEDIA
from vllm_engine.config.groups.types import NonNegative, Positive
from vllm_engine.config.option import HONOURED, option


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps of the engine."""

    max_num_batched_tokens: Positive | None = option(
        None, help="most tokens in one step; unset: by --performance-mode and device", common=True
    )
    max_num_seqs: Positive | None = option(
        None, help="most requests running at once; unset: by --performance-mode and device", common=True
    )
    max_num_partial_prefills: Positive = option(1, help="most prompts that a step may leave part-way through prefill")
    max_long_partial_prefills: Positive = option(
        1,
        help="most long ones among those; with fewer than may be part-way in all, short prompts pass waiting long ones",
    )
    long_prefill_token_threshold: NonNegative = option(
        0,
        help="a prompt with more tokens is long, and no step takes more of one prompt; "
        "0: no limit, and a prompt is long with more than 4 % of --max-model-len",
    )
    max_num_queued_reqs: NonNegative = option(
        4096,
        help="most requests that wait at a server beside those that run; more are answered with 429; 0: no limit",
    )
    max_num_queued_tokens: NonNegative = option(
        4_194_304,
        help="most tokens of prompts that wait at a server; with more, requests are answered with 429; 0: no limit",
    )
    scheduling_policy: Literal["fcfs", "priority", "fair"] = option(
        "fcfs",
        help="order of requests: by arrival, by priority, or such that each API key gets its fair share of tokens",
    )
    enable_chunked_prefill: bool | None = option(None, help="split long prompts over several steps; unset: yes")
    disable_chunked_mm_input: bool = option(False, help="never split a media item over steps", unsupported=NO_MEDIA)
    scheduler_cls: str | None = option(
        None, help="scheduler class to use instead of ours, as an import path (module:Class)", metavar="CLASS"
    )
    scheduler_reserve_full_isl: bool = option(
        True, help="start a request only when the KV cache has room for its whole prompt"
    )
    disable_hybrid_kv_cache_manager: bool | None = option(
        None, help="keep all tokens of sliding-window layers, too; costs memory"
    )
    async_scheduling: bool | None = option(
        None,
        help="schedule the next step while this one runs; unset: on a GPU",
        unsupported="on a CPU a step and its scheduling would compete for the same cores",
        possible=(False,),
        cuda=HONOURED,
    )
    stream_interval: Positive = option(
        1, help="new tokens in a part of a stream; the first token and the end go out at once"
    )

    @property
    def chunked_prefill(self) -> bool:
        """Whether prompts may be split over steps, with the default filled in."""
        return self.enable_chunked_prefill is not False
