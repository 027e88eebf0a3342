"""Who was served how much lately: the tenants that flood the engine, and those that come by now and then."""

import itertools
import time
from collections import Counter
from collections.abc import Callable

from vllm_engine.config.device import DeviceKind

WINDOW_SECONDS = 60.0
"""What was served so long ago counts no more; at the latest after twice this time."""
MAX_TENANTS = 1024
"""Most tenants of a window. With more, the window ends early."""
LEAST_STEP_TOKENS: dict[DeviceKind, int] = {"cpu": 64, "cuda": 256}
"""What prompts of heavy tenants may always take of a step. With less, it would be little but the cost of a step: a CPU
computes each token for itself, a GPU so many in hardly more time than one.
"""
_FORGETTING = 0.8
"""What a light tenant's prompt counts for when its next one comes: of the long ones among them one waits longest."""


class RecentUse:
    """What tenants were served within the last minute or two, and so how large a step may be.

    A light tenant has no request most of the time, so the step that its next one finds under way was begun by others
    alone. For the light one to wait no longer than its own prompt takes, that step must be no longer than a step with
    that prompt. Hence the steps that heavy tenants fill stay as small as the prompts of the light ones are, also while
    none of these is there. A tenant that was alone for so long is not held back.

    Args:
        least_step_tokens: what prompts of heavy tenants may always take of a step.
        clock: seconds that only grow.
    """

    def __init__(
        self, least_step_tokens: int = LEAST_STEP_TOKENS["cpu"], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._least = least_step_tokens
        self._clock = clock
        self._window: Counter[str] = Counter()  # cost by tenant
        self._before: Counter[str] = Counter()  # of the window before this
        self._total = 0
        self._num_tenants = 0
        self._ends = clock() + WINDOW_SECONDS
        self._light_prompt = 0.0

    def heavy_tokens(self, num_decodes: int) -> int:
        """Tokens that prompts of heavy tenants may take of a step beside ``num_decodes`` requests that generate."""
        return max(self._least, int(self._light_prompt) - num_decodes)

    def is_heavy(self, tenant: str) -> bool:
        """Whether a tenant had more than an even share."""
        return (self._window[tenant] + self._before[tenant]) * self._num_tenants > self._total

    def charge(self, tenant: str, cost: int) -> None:
        """A tenant is served."""
        if tenant not in self._window:
            self._num_tenants += tenant not in self._before
        self._window[tenant] += cost
        self._total += cost

    def any_light(self, also: Callable[[str], bool]) -> bool:
        """Whether one of several tenants had no more than an even share, and meets another condition, too."""
        if self._num_tenants < 2:
            return False
        tenants = itertools.chain(self._window, self._before)
        return any(not self.is_heavy(tenant) and also(tenant) for tenant in tenants)

    def note_light_prompt(self, num_tokens: int) -> None:
        """A light tenant's prompt is going to be computed, of which so many tokens are not cached."""
        if self._num_tenants > 1:  # else it is all that there is
            self._light_prompt = max(num_tokens, _FORGETTING * self._light_prompt)

    def forget(self) -> None:
        """Let go of what is over. To be called before each step."""
        if self._clock() < self._ends and len(self._window) <= MAX_TENANTS:
            return
        self._before, self._window = self._window, Counter()
        self._ends = self._clock() + WINDOW_SECONDS
        self._total = self._before.total()
        self._num_tenants = len(self._before)
