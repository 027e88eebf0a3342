"""The logits processors of one request. Whatever a user's code does wrong becomes that request's error, and no more."""

from collections.abc import Sequence

import torch

from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest
from vllm_engine.sampling.processors import LogitsProcessor, RequestLogitsProcessor

logger = get_logger(__name__)

LARGEST_LOGIT = 1e30
"""A larger one could become infinite when it is divided by the temperature."""


class RequestProcessors:
    """What the engine's processors made for one request, and the output tokens that they are told.

    Args:
        processors: of the engine.
        request: the request.
        outputs: its output tokens so far (after a preemption).
    """

    def __init__(self, processors: Sequence[LogitsProcessor], request: EngineRequest, outputs: list[int]) -> None:
        self.error: str | None = None
        """Why the request cannot go on."""
        self._outputs = list(outputs)
        self._made: list[tuple[str, RequestLogitsProcessor]] = []
        for processor in processors:
            name = type(processor).__name__
            try:
                made = processor.new_req_logits_processor(request.params, list(request.known_prompt))
            except (Exception, SystemExit) as error:  # a user's own code can raise anything
                self._fail(name, error)
                return
            if made is not None:
                self._made.append((name, made))

    def __bool__(self) -> bool:
        """Whether there is anything to apply, or to tell."""
        return bool(self._made) or self.error is not None

    def append(self, token_id: int) -> None:
        """Take note of a new output token."""
        self._outputs.append(token_id)

    def apply(self, logits: torch.Tensor) -> str | None:
        """Change the logits ``[vocab_size]`` fp32 of the request in place; why it cannot go on, if so."""
        for name, processor in self._made:
            try:
                changed = processor(self._outputs, logits)
                problem = _problem(changed, logits)
                if problem is None and changed is not None:
                    logits.copy_(changed)
            except (Exception, SystemExit) as error:
                return self._fail(name, error)
            if problem is not None:
                self.error = f"logits processor {name} {problem}"
                return self.error
        if bool(logits.max() > LARGEST_LOGIT):
            self.error = f"the logits processors of this request made a logit larger than {LARGEST_LOGIT:g}"
        return self.error

    def _fail(self, name: str, error: BaseException) -> str:
        logger.error("logits processor %s failed; its request ends", name, exc_info=error)
        # The text of an error is for the operator's log: this goes to the client.
        self.error = f"logits processor {name} failed ({type(error).__name__})"
        return self.error


def _problem(changed: object, logits: torch.Tensor) -> str | None:
    """What is wrong with a result of a user's processor."""
    if changed is None:
        return None
    if not isinstance(changed, torch.Tensor):
        return f"returned a {type(changed).__name__}, not a tensor or None"
    if changed.shape != logits.shape or changed.dtype != logits.dtype:
        return (
            f"returned {list(changed.shape)} of {changed.dtype}, but logits are {list(logits.shape)} of {logits.dtype}"
        )
    return None
