"""The policy ``fair``: whoever was served least comes first, and steps are kept short for light tenants."""

from collections.abc import Callable, Sequence

from vllm_engine.core.policies.policy import Policy, StepRules
from vllm_engine.core.policies.tenants import OUTPUT_TOKEN_COST, FairWaitingRequests, Tenants
from vllm_engine.core.request import Request

MOST_STEPS_BACK = 3
"""Steps in a row that heavy tenants let go by while light ones have prompts: two light requests that meet want two."""


class FairStepRules(StepRules):
    """What light tenants leave heavy ones of a step, and a place beside the prefills of others."""

    def __init__(self, is_heavy: Callable[[str], bool]) -> None:
        super().__init__()
        self.newcomer: str | None = None
        """Tenant that waits while prefills of others run: one prompt of it may be part-way beside theirs."""
        self.heavy_tokens: int | None = None
        """Tokens that prompts of heavy tenants can still take, where light tenants come by. None is no limit."""
        self._is_heavy = is_heavy

    def limit(self, request: Request, count: int) -> int:
        if self.heavy_tokens is None or not self._is_heavy(request.tenant):
            return count
        return min(count, self.heavy_tokens)

    def take(self, request: Request, count: int) -> None:
        if self.heavy_tokens is not None and self._is_heavy(request.tenant):
            self.heavy_tokens = max(0, self.heavy_tokens - count)

    def admits(self, request: Request, partial: Sequence[Request]) -> bool:
        return request.tenant == self.newcomer and all(other.tenant != self.newcomer for other in partial)


class FairPolicy(Policy):
    """The least served tenant comes first (``Tenants``).

    A waiting request may take the place of a running one, when its tenant runs less than its share. Where a light
    tenant comes by now and then (``RecentUse``), steps are kept short, and those of heavy ones that generate let every
    other step go by if it has a light one's prompt.
    """

    def __init__(self, tenants: Tenants, is_long: Callable[[Request], bool], *, chunked: bool) -> None:
        """
        Args:
            tenants: have no requests yet.
            is_long: whether a waiting request counts as long.
            chunked: whether a prefill may be spread over several steps. If not, no step is kept short.
        """
        super().__init__(tenants.order, FairWaitingRequests(tenants, is_long))
        self.tenants = tenants
        self._chunked = chunked
        self._stood_back = 0  # steps in a row, the last one included, that heavy tenants let go by

    def begin_step(
        self, running: list[Request], could_start: Callable[[Request], bool], preempt: Callable[[Request], None]
    ) -> StepRules:
        rules = FairStepRules(self.tenants.is_heavy)
        if self.tenants.num_active > 1:
            self._share_out(rules, running, could_start, preempt)
        if self._chunked:
            self._keep_short(rules, running, could_start)
        return rules

    def _share_out(
        self,
        rules: FairStepRules,
        running: list[Request],
        could_start: Callable[[Request], bool],
        preempt: Callable[[Request], None],
    ) -> None:
        """Let a waiting request have the place, or the blocks, of a tenant that has been served more.

        One request a step comes in that way, so that work is not thrown away in heaps; what it takes is mostly found
        again in the prefix cache.
        """
        running.sort(key=self.order)  # who was served least has changed
        prefilling = [one for one in running if one.is_prefilling]
        rules.num_partial = len(prefilling)
        request = self.first()
        if request is None:
            return
        while running and not could_start(request):
            victim = self.tenants.who_gives_way(request, running)
            if victim is None:
                return
            preempt(victim)
        if prefilling and all(one.tenant != request.tenant for one in prefilling):
            rules.newcomer = request.tenant
            rules.num_partial += 1

    def _keep_short(
        self, rules: FairStepRules, running: Sequence[Request], could_start: Callable[[Request], bool]
    ) -> None:
        """Leave heavy tenants no more of the step than a light one should have to wait for.

        A step with a light tenant's prompt, and so its first token, is the light ones' own: heavy tenants stand back.
        But not for long: of so many steps in a row one is everybody's, so that many light tenants cannot hold up the
        others.
        """
        stood_back, self._stood_back = self._stood_back, 0
        rules.heavy_tokens = self.tenants.heavy_tokens(sum(not request.is_prefilling for request in running))
        if rules.heavy_tokens is None or stood_back >= MOST_STEPS_BACK:
            return
        if self._has_light_prompt(running, could_start):
            self._stood_back = stood_back + 1
            rules.heavy_tokens = 0
            rules.stands_back = self._is_heavy

    def _has_light_prompt(self, running: Sequence[Request], could_start: Callable[[Request], bool]) -> bool:
        """Whether the next step computes a prompt of a light tenant, one that runs or one that can start."""
        if any(request.is_prefilling and not self._is_heavy(request) for request in running):
            return True
        request = self.first()
        return request is not None and not self._is_heavy(request) and could_start(request)

    def _is_heavy(self, request: Request) -> bool:
        return self.tenants.is_heavy(request.tenant)

    def add(self, request: Request) -> None:
        self.tenants.add_request(request.tenant)
        super().add(request)

    def start(self, request: Request) -> None:
        super().start(request)
        self.tenants.start(request.tenant)

    def charge_prompt(self, request: Request, num_tokens: int) -> None:
        self.tenants.begin_prompt(request.tenant, num_tokens)

    def charge_output(self, request: Request, num_tokens: int) -> None:
        self.tenants.charge(request.tenant, OUTPUT_TOKEN_COST * num_tokens)

    def send_back(self, request: Request) -> None:
        self.tenants.stop(request.tenant)
        super().send_back(request)

    def remove(self, request: Request) -> bool:
        was_waiting = super().remove(request)
        if not was_waiting:
            self.tenants.stop(request.tenant)
        self.tenants.remove_request(request.tenant)
        return was_waiting
