"""``POST /tokenize``, ``POST /detokenize`` and ``GET /tokenizer_info``."""

from typing import Any

import msgspec

from vllm_server.protocol.chat import Message, ReasoningEffort, Tool


class TokenizeTextRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A text as a prompt of ``/v1/completions``."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A conversation as that of ``/v1/chat/completions``; its template writes the special tokens."""

    model: str | None = None
    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: ReasoningEffort | None = None
    return_token_strs: bool = False


class Tokens(msgspec.Struct):
    """The answer. ``token_strs`` has each token as the vocabulary spells it, where that is asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


class DetokenizedText(msgspec.Struct):
    """Their text, special tokens included."""

    prompt: str


class TokenizerInfo(msgspec.Struct):
    """What a client needs to do as the tokenizer does. ``chat_template`` is the one that the server uses."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    special_tokens_map: dict[str, str]
    all_special_ids: list[int]
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    chat_templates: dict[str, str]
