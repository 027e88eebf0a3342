"""Requests and their states, without a frontend."""

from typing import Any

from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.sampler import SamplingState


def request(
    prompt: list[int] | None = None,
    *,
    seed: int = 0,
    stop_token_ids: list[int] | None = None,
    bad_words: list[list[int]] | None = None,
    **params: Any,
) -> EngineRequest:
    """A request with the given fields of ``SamplingParams``."""
    return EngineRequest(
        request_id="test",
        prompt_token_ids=[1, 2, 3] if prompt is None else prompt,
        params=SamplingParams(**params),
        max_tokens=100,
        seed=seed,
        stop_token_ids=stop_token_ids or [],
        eos_token_ids=[],
        bad_words_token_ids=bad_words or [],
    )


def state(prompt: list[int] | None = None, output: list[int] | None = None, **fields: Any) -> SamplingState:
    """The state of a request that has brought ``output`` so far."""
    asked = request(prompt, **fields)
    return SamplingState(asked, asked.prompt_token_ids + (output or []))
