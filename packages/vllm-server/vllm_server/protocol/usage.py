"""The token counts of a response."""

import msgspec


class PromptTokensDetails(msgspec.Struct):
    """How many tokens of the prompt came out of the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Token counts of one response, over all of its prompts and completions."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | msgspec.UnsetType = msgspec.UNSET
