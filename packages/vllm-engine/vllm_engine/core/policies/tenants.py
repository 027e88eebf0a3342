"""Fair shares: whoever was served least comes next. Virtual token counters, as in Sheng et al., "Fairness in Serving
Large Language Models" (2023).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from vllm_engine.core.policies.recent_use import RecentUse
from vllm_engine.core.policies.waiting import WaitingRequests, fcfs_order
from vllm_engine.core.request import Request

PROMPT_TOKEN_COST = 1
OUTPUT_TOKEN_COST = 2
"""What tokens count for, as in the paper: a generated token is a whole pass over the weights for its request."""
MAX_DEBTORS = 1024
"""Most tenants without requests that are remembered, because they were served more than those who have some."""


class Tenants:
    """How much each tenant was served, in cost of tokens, and runs now, as far as that matters for who comes next.

    A tenant without requests is forgotten as soon as it has no more than the least served of the active ones, where a
    returning tenant begins: nobody saves up a claim while away, and nobody gets rid of what it was served by leaving
    for a moment. When no tenant is active, all are forgotten.
    """

    def __init__(self, max_num_seqs: int, slack: int, recent: RecentUse | None = None) -> None:
        """
        Args:
            max_num_seqs: places for running requests.
            slack: cost by which a tenant may be ahead of the least served one, and still be entitled to its share of
                the places. Without any, one request could cost a light tenant the turn of the next.
            recent: says who is heavy, and how large steps may be.
        """
        self._recent = RecentUse() if recent is None else recent
        self._places = max_num_seqs
        self._slack = slack
        self._served: dict[str, int] = {}  # of the active tenants
        self._num_requests: Counter[str] = Counter()
        self._num_running: Counter[str] = Counter()
        self._debtors: dict[str, int] = {}

    @property
    def num_active(self) -> int:
        """Tenants that have requests, waiting or running."""
        return len(self._served)

    @property
    def num_known(self) -> int:
        """Tenants of which anything is kept."""
        return len(self._served | self._debtors | self._num_requests | self._num_running)

    def served(self, tenant: str) -> int:
        """What an active tenant was served."""
        return self._served[tenant]

    def add_request(self, tenant: str) -> None:
        """A tenant has one more request."""
        if tenant not in self._served:
            self._served[tenant] = max(self._debtors.pop(tenant, 0), self._floor())
        self._num_requests[tenant] += 1
        self._recent.charge(tenant, 0)

    def remove_request(self, tenant: str) -> None:
        """A request of an active tenant has ended, and does not run."""
        self._num_requests[tenant] -= 1
        if self._num_requests[tenant]:
            return
        del self._num_requests[tenant]
        self._debtors[tenant] = self._served.pop(tenant)
        floor = self._floor()
        self._debtors = {name: served for name, served in self._debtors.items() if self._served and served > floor}
        if len(self._debtors) > MAX_DEBTORS:
            del self._debtors[min(self._debtors, key=self._debtors.__getitem__)]

    def start(self, tenant: str) -> None:
        """A request begins to run."""
        self._num_running[tenant] += 1

    def stop(self, tenant: str) -> None:
        """A request runs no more."""
        self._num_running[tenant] -= 1
        if not self._num_running[tenant]:
            del self._num_running[tenant]

    def begin_prompt(self, tenant: str, num_tokens: int) -> None:
        """A request of an active tenant runs for the first time: so many tokens of its prompt are to be computed."""
        if not self.is_heavy(tenant):
            self._recent.note_light_prompt(num_tokens)
        self.charge(tenant, PROMPT_TOKEN_COST * num_tokens)

    def charge(self, tenant: str, cost: int) -> None:
        """An active tenant is served."""
        self._served[tenant] += cost
        self._recent.charge(tenant, cost)

    def is_heavy(self, tenant: str) -> bool:
        """Whether an active tenant had more than an even share lately, or is ahead of the least served one."""
        return self._recent.is_heavy(tenant) or self._served[tenant] > self._floor() + self._slack

    def heavy_tokens(self, num_decodes: int) -> int | None:
        """Tokens that prompts of heavy tenants may take of the next step, see ``RecentUse``.

        None is no limit: there are no light tenants.

        Args:
            num_decodes: requests that generate.
        """
        self._recent.forget()
        ahead = self._floor() + self._slack
        if self._recent.any_light(lambda tenant: self._served.get(tenant, 0) <= ahead):
            return self._recent.heavy_tokens(num_decodes)
        return None

    def order(self, request: Request) -> tuple[int, int]:
        """Sort key of running requests: least served tenant first, then first come. It changes with every step."""
        return (self._served[request.tenant], request.arrival_order)

    def next_of(self, requests: Iterable[Request]) -> Request | None:
        """The next of waiting requests: of a tenant that is not heavy, of one that is entitled to a place, of the least
        served one, the first. None of none.
        """
        share, floor = self._share(), self._floor()

        def key(request: Request) -> tuple[bool, bool, int, int]:
            tenant = request.tenant
            return (self.is_heavy(tenant), not self._is_entitled(tenant, share, floor), *self.order(request))

        return min(requests, key=key, default=None)

    def who_gives_way(self, request: Request, running: Sequence[Request]) -> Request | None:
        """The running request whose place may go to a waiting one: the last one of the most served tenant.

        None unless the waiting one's tenant is entitled to a place, and the other runs more than its share. A tenant
        that runs nothing may take from one that runs several, whatever the shares.

        Args:
            request: waits, and is the next.
            running: sorted by ``order``.
        """
        share, mine = self._share(), self._num_running[request.tenant]
        if not self._is_entitled(request.tenant, share, self._floor()):
            return None
        for other in reversed(running):
            if other.tenant != request.tenant and self._num_running[other.tenant] > (share if mine else 1):
                return other
        return None

    def _share(self) -> int:
        """Places of each active tenant if all have as many; where blocks and not places lack, of the places in use."""
        return max(1, min(self._places, self._num_running.total() + 1) // max(1, len(self._served)))

    def _is_entitled(self, tenant: str, share: int, floor: int) -> bool:
        return self._num_running[tenant] < share and self._served[tenant] <= floor + self._slack

    def _floor(self) -> int:
        return min(self._served.values(), default=0)


class FairWaitingRequests:
    """The waiting requests by tenant; the next is that of ``Tenants.next_of``.

    As ``WaitingRequests``; a look at the next costs time for each tenant with waiting requests, not for each request.
    """

    def __init__(self, tenants: Tenants, is_long: Callable[[Request], bool]) -> None:
        self._all = tenants
        self._is_long = is_long
        self._of_tenant: dict[str, WaitingRequests] = {}
        self._tenant_of: dict[str, str] = {}  # by id

    def __len__(self) -> int:
        return len(self._tenant_of)

    def push(self, request: Request) -> None:
        """Add a request at its place among those of its tenant."""
        self._tenant_of[request.request_id] = request.tenant
        queue = self._of_tenant.get(request.tenant)
        if queue is None:
            queue = self._of_tenant[request.tenant] = WaitingRequests(fcfs_order, self._is_long)
        queue.push(request)

    def first(self, *, with_long: bool) -> Request | None:
        """The next request, or the next that is not long; None when there is none."""
        firsts = (queue.first(with_long=with_long) for queue in self._of_tenant.values())
        return self._all.next_of(request for request in firsts if request is not None)

    def remove(self, request_id: str) -> Request | None:
        """Take out a request by id, if it waits here."""
        tenant = self._tenant_of.pop(request_id, None)
        if tenant is None:
            return None
        queue = self._of_tenant[tenant]
        request = queue.remove(request_id)
        if not len(queue):
            del self._of_tenant[tenant]
        return request
