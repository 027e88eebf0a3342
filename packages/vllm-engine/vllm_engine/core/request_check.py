"""What the core refuses even if the frontend let it through: requests that would index out of bounds."""

from vllm_engine.messages import EMBEDS_ITEM_BYTES, EmbedsSpec, EngineReady, EngineRequest, PromptEmbeds


def problem_of(request: EngineRequest, ready: EngineReady) -> str | None:
    """Why a core that is ``ready`` cannot compute a request; None when it can."""
    prompt = request.prompt_token_ids
    if not 0 < len(prompt) <= ready.max_model_len:
        return f"prompt has {len(prompt)} tokens, the model takes 1 to {ready.max_model_len}"
    if min(prompt) < 0 or max(prompt) >= ready.vocab_size:
        return "prompt has a token id outside the vocabulary"
    embeds = request.prompt_embeds
    return None if embeds is None else _problem_of_embeds(embeds, ready.prompt_embeds, len(prompt))


def _problem_of_embeds(embeds: PromptEmbeds, spec: EmbedsSpec | None, num_tokens: int) -> str | None:
    if spec is None:
        return "prompt_embeds are not enabled"
    if embeds.shape != (num_tokens, spec.width) or embeds.dtype != spec.dtype:
        return f"prompt_embeds must be {num_tokens} rows of {spec.width} values of type {spec.dtype}"
    if len(embeds.data) != num_tokens * spec.width * EMBEDS_ITEM_BYTES[spec.dtype]:
        return "prompt_embeds has not as many bytes as its shape says"
    if not embeds.digest:
        return "prompt_embeds has no digest, so its blocks would have no names of their own"
    return None
