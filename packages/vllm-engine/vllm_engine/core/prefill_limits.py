"""How many requests may be part-way through their prefill after a step, and how they share its tokens."""

from collections.abc import Sequence

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.request import Request

LONG_SHARE_OF_MODEL_LEN = 0.04
"""Part of ``max_model_len`` from which a prefill counts as long where several may be part-way and nothing is said."""


class PrefillLimits:
    """What the settings of partial prefills say. A prefill that a step completes needs no place and is not limited."""

    def __init__(self, config: SchedulerConfig, *, max_model_len: int) -> None:
        threshold = config.long_prefill_token_threshold
        self.max_partial = config.max_num_partial_prefills
        """Most requests that a step may leave part-way through their prefill."""
        self.max_partial_long = min(config.max_long_partial_prefills, self.max_partial)
        """Most long ones among those."""
        self.max_tokens: int | None = threshold or None
        """Most tokens of one prefill in a step; None is no limit."""
        self._long_from: int | None = None
        if self.max_partial_long < self.max_partial:  # else nobody asks who is long
            self._long_from = threshold or int(max_model_len * LONG_SHARE_OF_MODEL_LEN)

    def is_long(self, request: Request) -> bool:
        """Whether a request that waits, or is in its prefill, counts as long."""
        return self._long_from is not None and request.num_prefill_tokens > self._long_from

    def has_place(self, request: Request, partial: Sequence[Request]) -> bool:
        """Whether a request may be part-way through its prefill beside those of ``partial``."""
        if len(partial) >= self.max_partial:
            return False
        if not self.is_long(request):
            return True
        return sum(map(self.is_long, partial)) < self.max_partial_long

    def share(self, num_tokens: int, num_partial: int = 0) -> int:
        """What one prefill that cannot be completed gets at first of the tokens that a step has for all prefills.

        Other prompts, above all short ones, have the rest; what they leave is handed out afterwards. ``num_partial``
        tells how many may be part-way where they are more than the settings say.
        """
        return max(1, num_tokens // max(self.max_partial, num_partial))
