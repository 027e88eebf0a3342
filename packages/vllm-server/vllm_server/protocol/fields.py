"""Fields of the published request classes that this server refuses, or takes as a mere hint.

A field is never ignored in silence. What is not here and not in the request's own class is unknown, and refused too.
"""

from collections.abc import Collection
from typing import Any

from vllm_engine.errors import Unsupported

HINTS = frozenset({"user", "metadata", "session_id", "safety_identifier", "prompt_cache_key"})
"""Labels for the operator's books and caches, with no promised effect: taken and not acted upon."""

_COMMON: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "watermarking": (False,),
    "truncation_side": ("left",),
    "logprob_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "return_weight_versions": (False,),
    "routed_experts_prompt_start": (0,),
    "return_token_offsets": (False,),
    "mm_payload": (),
    "return_mm_kwargs": (False,),
    "kv_transfer_params": ({},),
    "ec_transfer_params": ({},),
    "repetition_detection": (),
    "thinking_token_budget": (),
    "stream_interval": (1,),
    "store": (False,),
    "service_tier": ("auto", "default"),
}

REFUSED_COMPLETION: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    "suffix": ("",),
}
"""Of ``/v1/completions``: field -> values that mean the same as leaving it out (``null`` always does)."""

REFUSED_CHAT: dict[str, tuple[Any, ...]] = {
    **_COMMON,
    "include_reasoning": (True,),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "return_prompt_text": (False,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "parallel_tool_calls": (True,),
    "prompt_cache_retention": ("in_memory", "in-memory"),
}
"""The same for ``/v1/chat/completions``."""

REFUSED_MESSAGES: dict[str, tuple[Any, ...]] = {
    **{
        name: _COMMON[name]
        for name in ("watermarking", "mm_payload", "return_mm_kwargs", "kv_transfer_params", "ec_transfer_params")
    },
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "container": (),
    "mcp_servers": ([],),
}
"""The same for ``/v1/messages``."""

HINTS_OF_RESPONSES = frozenset({"session_id"})
"""The same as ``HINTS`` for ``/v1/responses``, which gives the other labels back."""

REFUSED_RESPONSES: dict[str, tuple[Any, ...]] = {
    "conversation": (),
    "context_management": ([],),
    "ec_transfer_params": ({},),
    "include_reasoning": (True,),
    "kv_transfer_params": ({},),
    "max_tool_calls": (),
    "media_io_kwargs": ({},),
    "mm_payload": (),
    "mm_processor_kwargs": ({},),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prompt": (),
    "prompt_cache_options": ({}, {"mode": "implicit"}),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "return_mm_kwargs": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "structured_outputs": ({},),
    "watermarking": (False,),
}
"""The same for ``/v1/responses``."""

NOT_FOR_TEXT: dict[str, tuple[Any, ...]] = {"media_io_kwargs": ({},), "mm_processor_kwargs": ({},)}
"""The same for ``/tokenize`` of a conversation."""

_NO_SEARCH = "completions are sampled, not searched for"
_NO_GRAMMAR = "this server does not yet hold answers to a grammar"
_TEXT_ONLY = "models of this server take and give text only"
_ONE_ENGINE = "this server exchanges no caches with others"
_NO_TOOLS = "this server calls no tools itself"
_NOTHING_KEPT = "this server keeps no answers"

REASONS = {
    "use_beam_search": _NO_SEARCH,
    "length_penalty": _NO_SEARCH,
    "watermarking": "answers carry no watermark",
    "truncation_side": "truncate_prompt_tokens keeps the end of the prompt (left)",
    "logprob_token_ids": "logprobs are those of the likeliest tokens",
    "response_format": _NO_GRAMMAR,
    "structured_outputs": _NO_GRAMMAR,
    "return_weight_versions": "weights do not change while this server runs",
    "routed_experts_prompt_start": "models of this server have no experts",
    "return_token_offsets": "offsets come with logprobs of completions (text_offset)",
    "mm_payload": _TEXT_ONLY,
    "return_mm_kwargs": _TEXT_ONLY,
    "media_io_kwargs": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "modalities": _TEXT_ONLY,
    "audio": _TEXT_ONLY,
    "kv_transfer_params": _ONE_ENGINE,
    "ec_transfer_params": _ONE_ENGINE,
    "repetition_detection": "use repetition_penalty, or stop",
    "thinking_token_budget": "this server does not tell thinking from answering",
    "include_reasoning": "this server does not tell thinking from answering",
    "stream_interval": "the server's --stream-interval holds for all requests",
    "store": _NOTHING_KEPT,
    "prompt_cache_retention": "the prefix cache keeps what it has room for",
    "service_tier": "all requests are served alike",
    "suffix": "no model of this server fills in the middle",
    "return_prompt_text": "use echo of completions, or /tokenize and /detokenize",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "parallel_tool_calls": "this server cannot keep the model from calling several tools",
    "prediction": "this version does not guess tokens ahead",
    "web_search_options": "this server searches nothing",
    "verbosity": "no model of this server knows it",
    "conversation": "use previous_response_id",
    "context_management": "use truncation",
    "max_tool_calls": _NO_TOOLS,
    "moderation": "this server judges no content",
    "prompt": "this server keeps no prompts; send instructions and input",
    "prompt_cache_options": "the prefix cache keeps what it has room for",
    "stream_options": "streams carry no padding",
    "speed": "all requests are served alike",
    "container": "this server runs no code",
    "mcp_servers": "this server calls no tools",
}
"""Why a field is refused."""


def without_refused(
    fields: dict[str, Any], refused: dict[str, tuple[Any, ...]], *, hints: Collection[str] = HINTS
) -> dict[str, Any]:
    """The fields that remain for the request's class, once hints and neutral values are taken out.

    Raises ``Unsupported`` naming the first field with a value that would have to be ignored.
    """
    remaining = {}
    for name, value in fields.items():
        if name in hints:
            continue
        if name not in refused:
            remaining[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in refused[name]):
            raise Unsupported(f"{name} is not supported: {REASONS[name]}", field=name)
    return remaining


def _same(value: Any, neutral: Any) -> bool:
    """Equality that tells ``False`` from ``0`` and ``True`` from ``1``, which JSON does too."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
