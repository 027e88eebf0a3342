"""From a chat request to what the engine is asked: for ``/v1/chat/completions``, and for routes that talk like it."""

from vllm_engine.params import SamplingParams
from vllm_server.context import ServerContext
from vllm_server.protocol.chat import ChatRequest
from vllm_server.protocol.sampling import sampling_params


def chat_params(request: ChatRequest, context: ServerContext) -> SamplingParams:
    """Without a limit of its own, an answer may be as long as the model allows. Raises ``InvalidRequest``."""
    defaults = context.default_sampling_params
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return sampling_params(
        request,
        defaults,
        max_tokens=asked if asked is not None else defaults.get("max_tokens"),
        max_tokens_asked=asked is not None,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
