"""Which model, and how its inputs and outputs look."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from vllm_engine.config.groups.reasons import NO_EXPERTS, NO_MEDIA, NO_POOLING
from vllm_engine.config.groups.types import Positive
from vllm_engine.config.option import option

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
AUTO = -1
"""``max_model_len``: as long as the memory allows."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to serve, and how its inputs and outputs look."""

    model: str = option(DEFAULT_MODEL, help="folder or hub name of the model; `demo` is built in", common=True)
    runner: Literal["auto", "generate", "pooling", "draft"] = option(
        "auto", help="what the model is run for", unsupported=NO_POOLING, possible=("generate",)
    )
    convert: Literal["auto", "none", "embed", "classify"] = option(
        "auto",
        help="adapter that turns a generating model into another kind",
        unsupported=NO_POOLING,
        possible=("none",),
    )
    tokenizer: str | None = option(None, help="folder or hub name of the tokenizer, when it is not the model's")
    tokenizer_mode: Literal["auto", "hf", "slow", "mistral", "deepseek_v32", "deepseek_v4", "fastokens"] = option(
        "auto",
        help="kind of tokenizer: auto and hf read tokenizer.json, slow takes one that transformers runs in Python",
        unsupported="this version reads the tokenizers of transformers only",
        possible=("hf", "slow"),
    )
    trust_remote_code: bool = option(
        False,
        help="allow code that comes with the model",
        no_effect="no code from a model's repository is ever run; all architectures served are built in",
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = option(
        "auto",
        help="data type of weights and activations; auto takes the checkpoint's (float32 becomes bfloat16)",
        common=True,
    )
    seed: int = option(0, help="seed of everything random that belongs to no request (dummy weights)")
    hf_config_path: str | None = option(None, help="folder or hub name of the config.json to use, when not the model's")
    allowed_local_media_path: str = option(
        "", help="folder from which requests may read images and videos", unsupported=NO_MEDIA
    )
    allowed_media_domains: list[str] | None = option(
        None, help="hosts from which requests may fetch media", unsupported=NO_MEDIA
    )
    revision: str | None = option(None, help="branch, tag or commit of the model on the hub")
    code_revision: str | None = option(
        None,
        help="branch, tag or commit of the model's code on the hub",
        unsupported="no code from a model's repository is ever run",
    )
    tokenizer_revision: str | None = option(None, help="branch, tag or commit of the tokenizer on the hub")
    max_model_len: Annotated[int, Meta(ge=-1)] | None = option(
        None,
        help="most tokens of prompt plus output; unset: the model's own; auto or -1: what fits into the memory",
        auto=True,
        common=True,
    )
    quantization: str | None = option(
        None,
        help="what the weights are quantised to while they are loaded: int8 (a scale for each row), int4 (one for "
        "each 128 columns of a row; LM head and tied embedding as int8), or fp8 (e4m3, a scale for each row; LM head "
        "and tied embedding as they are; on GPUs since Ada)",
        unsupported="this version quantises checkpoints in float32, float16 or bfloat16 itself",
        possible=("int8", "int4", "fp8"),
        short=("-q",),
        metavar="METHOD",
        common=True,
    )
    allow_deprecated_quantization: bool = option(
        False,
        help="allow quantisation methods that are about to go",
        no_effect="no method that is served is deprecated",
    )
    enforce_eager: bool = option(
        False,
        help="call every operation anew in each step, instead of replaying decode steps as graphs",
    )
    enable_return_routed_experts: bool = option(
        False, help="return which experts each token was routed to", unsupported=NO_EXPERTS
    )
    max_logprobs: Annotated[int, Meta(ge=-1)] = option(20, help="most logprobs a request may ask for; -1 is no limit")
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"] = option(
        "raw_logprobs",
        help="what `logprobs` returns: from before (raw) or after (processed) penalties, temperature and top-k/top-p, "
        "normalised or not; for `prompt_logprobs` always from before",
    )
    disable_sliding_window: bool = option(
        False, help="use full attention everywhere, and no more tokens than the sliding window has"
    )
    disable_cascade_attn: bool = option(
        True,
        help="no separate attention pass over a prefix that a whole batch shares",
        no_effect="this version has no such pass",
    )
    skip_tokenizer_init: bool = option(False, help="run without a tokenizer: token ids in, token ids out")
    enable_prompt_embeds: bool = option(False, help="take prompts as embeddings, too")
    served_model_name: list[str] | None = option(
        None, help="names under which the API serves the model; the first is its main one", metavar="NAME", common=True
    )
    config_format: Literal["auto", "hf", "mistral"] = option(
        "auto",
        help="format of the model's configuration file",
        unsupported="this version reads config.json only, not params.json",
        possible=("hf",),
    )
    hf_token: str | bool | None = option(
        None,
        help="access token for the hub; the flag alone takes the stored one",
        bare=True,
        secret=True,
        metavar="TOKEN",
        common=True,
    )
    hf_overrides: dict[str, Any] = option({}, help="values that replace those of the model's config.json")
    pooler_config: dict[str, Any] | None = option(None, help="how pooling models pool", unsupported=NO_POOLING)
    generation_config: str = option(
        "auto", help="where default sampling values come from: auto (the model's), vllm (none), or a folder"
    )
    override_generation_config: dict[str, Any] = option({}, help="default sampling values that win over the model's")
    enable_sleep_mode: bool = option(
        False,
        help="let the engine sleep when told to: requests wait, and the memory of KV cache and weights goes back",
    )
    model_impl: Literal["auto", "vllm", "transformers", "terratorch"] = option(
        "auto",
        help="whose implementation of the model to use",
        unsupported="models run in this engine's own implementation only",
        possible=("vllm",),
    )
    override_attention_dtype: str | None = option(
        None, help="data type of attention, when not the model's", unsupported="attention runs in the model's data type"
    )
    logits_processors: list[str] | None = option(
        None,
        help="classes that change logits before sampling, as import paths (module:Class)",
        metavar="CLASS",
        classes=True,
    )
    io_processor_plugin: str | None = option(
        None, help="plugin that reads and writes other kinds of data", unsupported=NO_POOLING
    )
    renderer_num_workers: Positive = option(1, help="threads that tokenise long prompts and render long conversations")
