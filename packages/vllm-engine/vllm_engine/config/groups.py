"""The configuration groups. Keyword arguments, command-line flags and validation are all made from these fields."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vllm_engine.config.option import option

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to serve, and how its inputs and outputs look."""

    model: str = option(DEFAULT_MODEL, help="folder or hub name of the model; `demo` is built in")
    tokenizer: str | None = option(None, help="folder or hub name of the tokenizer, when it is not the model's")
    revision: str | None = option(None, help="branch, tag or commit of the model on the hub")
    tokenizer_revision: str | None = option(None, help="branch, tag or commit of the tokenizer on the hub")
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = option(
        "auto", help="data type of weights and activations; auto takes the checkpoint's (float32 becomes bfloat16)"
    )
    seed: int = option(0, help="seed of everything random that belongs to no request (dummy weights)")
    max_model_len: Positive | None = option(None, help="most tokens of prompt plus output; default: the model's own")
    served_model_name: list[str] | None = option(None, help="names under which the API serves the model")
    max_logprobs: Annotated[int, Meta(ge=-1)] = option(20, help="most logprobs a request may ask for; -1 is no limit")
    generation_config: str = option(
        "auto", help="where default sampling values come from: auto (the model's), vllm (none), or a folder"
    )
    override_generation_config: dict[str, Any] = option(
        {}, help="JSON of default sampling values that win over the model's"
    )
    hf_overrides: dict[str, Any] = option({}, help="JSON of values that replace those of the model's config.json")
    hf_token: str | None = option(None, help="access token for the hub")
    skip_tokenizer_init: bool = option(False, help="run without a tokenizer: token ids in, token ids out")


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How weights get from disk into memory."""

    load_format: Literal["auto", "hf", "safetensors", "pt", "dummy"] = option(
        "auto", help="file format of the weights; dummy makes random ones"
    )
    download_dir: str | None = option(None, help="where files from the hub are kept")
    ignore_patterns: list[str] = option(["original/**/*"], help="files of the model's repository to leave out")
    use_tqdm_on_load: bool = option(True, help="show a progress bar while loading weights")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The KV cache."""

    block_size: Annotated[int, Meta(ge=1, le=1024)] | None = option(None, help="tokens in one KV block (16 by default)")
    kv_cache_memory_bytes: Positive | None = option(
        None, help="bytes for the KV cache; default: a share of free memory"
    )
    num_gpu_blocks_override: Annotated[int, Meta(ge=2)] | None = option(None, help="number of KV blocks, on any device")
    enable_prefix_caching: bool = option(True, help="reuse the KV cache of equal prompt beginnings")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps of the engine."""

    max_num_batched_tokens: Positive | None = option(None, help="most tokens in one step (2048 by default)")
    max_num_seqs: Positive | None = option(None, help="most requests running at once (256 by default)")
    enable_chunked_prefill: bool = option(True, help="split long prompts over several steps")
    long_prefill_token_threshold: NonNegative = option(0, help="most tokens of one request in a step; 0 is no limit")
    scheduling_policy: Literal["fcfs", "priority"] = option(
        "fcfs", help="order of requests: by arrival, or by priority"
    )


@dataclass(frozen=True, kw_only=True)
class ObservabilityConfig:
    """What the engine tells about itself."""

    disable_log_stats: bool = option(False, help="no periodic statistics in the log and no engine metrics")
    enable_log_requests: bool = option(False, help="log each request with its parameters")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """All settings of one engine, checked. Made by ``EngineArgs.create_config``."""

    model: ModelConfig = ModelConfig()
    load: LoadConfig = LoadConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
