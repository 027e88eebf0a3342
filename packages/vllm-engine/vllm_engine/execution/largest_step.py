"""The step that takes the most memory: as many tokens and requests as a step may have, with all that they may ask."""

import msgspec

from vllm_engine.execution.batch import NewRequest, ScheduledBatch
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams

_EVERYTHING = SamplingParams(
    top_p=0.9,
    top_k=50,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logprobs=20,
)
"""Sampling that needs a row's logits more than once: changed by penalties, sorted out by filters, kept for logprobs."""


def largest_step(
    *, num_tokens: int, num_requests: int, max_model_len: int, num_groups: int, block_size: int
) -> ScheduledBatch:
    """A batch of at most ``num_tokens`` tokens in ``num_requests`` requests, all of which get a token sampled.

    The first request is as long as one may be, so that the block tables are as wide, and wants log-probabilities of
    its prompt. Every block is number 0, which belongs to nobody: what is written there is never read.
    """
    each = min(num_tokens // num_requests, max_model_len)
    first = min(num_tokens - each * (num_requests - 1), max_model_len)
    batch = ScheduledBatch()
    for number in range(num_requests):
        new_tokens, length = (first, max_model_len) if number == 0 else (each, each)
        params = msgspec.structs.replace(_EVERYTHING, prompt_logprobs=0 if number == 0 else None)
        token_ids = [0] * length
        request = EngineRequest(f"largest-{number}", token_ids, params, 1, number, [], [], [])
        blocks = [[0] * -(-length // block_size) for _ in range(num_groups)]
        batch.new_requests.append(NewRequest(request, token_ids, blocks, length - new_tokens, number == 0))
        batch.num_scheduled_tokens[request.request_id] = new_tokens
    return batch
