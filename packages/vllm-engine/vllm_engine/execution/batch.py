"""What the scheduler hands to the executor each step, and what comes back. Plain data, no tensors."""

from dataclasses import dataclass, field

from vllm_engine.messages import EngineRequest, PositionLogprobs


@dataclass(slots=True)
class NewRequest:
    """A request that enters the batch: new, or again after a preemption (then with the output it already had).

    ``token_ids`` is the prompt and any output so far. ``block_ids[group]`` are the blocks of each KV cache group in
    the order of the sequence. ``num_computed_tokens`` tokens are in the cache already (prefix hit).
    ``wants_prompt_logprobs`` is False when they have been delivered before a preemption.
    """

    request: EngineRequest
    token_ids: list[int]
    block_ids: list[list[int]]
    num_computed_tokens: int
    wants_prompt_logprobs: bool


@dataclass(slots=True)
class ScheduledBatch:
    """One step. Only differences from the step before: a request that just goes on costs one entry of a dict.

    ``removed`` leave the batch before anything else (finished, aborted or preempted since the last step).
    ``new_block_ids[request_id][group]`` are blocks to append to a running request's tables.
    ``num_scheduled_tokens[request_id]``, in batch order, is how many tokens of each request to compute now. A request
    whose last known token is among them gets a new token sampled.
    """

    new_requests: list[NewRequest] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    new_block_ids: dict[str, list[list[int]]] = field(default_factory=dict)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def total_num_tokens(self) -> int:
        """Tokens to compute in this step, over all requests."""
        return sum(self.num_scheduled_tokens.values())


@dataclass(slots=True)
class BatchResult:
    """What a step computed.

    ``sampled[request_id]`` are the new tokens of each request that reached its last known token.
    ``logprobs[request_id]`` has one entry per new token, for requests that asked.
    ``prompt_logprobs[request_id]`` has the entries of the prompt tokens after those computed in this step.
    ``errors[request_id]`` tells why a request cannot go on (for example NaN logits); the others are not affected.
    ``num_corrupted`` of them have NaN in their logits.
    """

    sampled: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[PositionLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[PositionLogprobs]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    num_corrupted: int = 0
