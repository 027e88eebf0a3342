"""The waiting requests: a heap in the order of the policy, with removal by id."""

import heapq
from collections.abc import Callable

from vllm_engine.core.request import Request

OrderKey = Callable[[Request], tuple[int, int]]


def fcfs_order(request: Request) -> tuple[int, int]:
    """First come, first served. A preempted request keeps its place: it came first."""
    return (0, request.arrival_order)


def priority_order(request: Request) -> tuple[int, int]:
    """Lower priority value first, then first come."""
    return (request.request.priority, request.arrival_order)


class RequestQueue:
    """Push, peek and removal in O(log n). Removed entries stay in the heap until they surface or are the most of it."""

    def __init__(self, order: OrderKey) -> None:
        self._order = order
        self._heap: list[tuple[tuple[int, int], Request]] = []  # no two of an order: requests are never compared
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def push(self, request: Request) -> None:
        """Add a request at its place in the order."""
        self._requests[request.request_id] = request
        heapq.heappush(self._heap, (self._order(request), request))

    def peek(self) -> Request | None:
        """The next request; None when there is none."""
        if not self._requests:
            return None
        while not self._is_waiting(self._heap[0][1]):
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def remove(self, request_id: str) -> Request | None:
        """Take out a request by id, if it waits here."""
        request = self._requests.pop(request_id, None)
        if len(self._heap) > 2 * len(self._requests) + 64:
            self._heap = [entry for entry in self._heap if self._is_waiting(entry[1])]
            heapq.heapify(self._heap)
        return request

    def _is_waiting(self, request: Request) -> bool:
        """Whether an entry of the heap is still good: its id may have been removed, and even have come again."""
        return self._requests.get(request.request_id) is request


class WaitingRequests:
    """The waiting requests in the order of the policy, those with a long prefill in a queue of their own.

    So the first short one is found without a walk past the long ones that may not start yet. All in O(log n).
    """

    def __init__(self, order: OrderKey, is_long: Callable[[Request], bool]) -> None:
        self._order = order
        self._is_long = is_long
        self._short = RequestQueue(order)
        self._long = RequestQueue(order)

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    def push(self, request: Request) -> None:
        """Add a request at its place in the order."""
        (self._long if self._is_long(request) else self._short).push(request)

    def first(self, *, with_long: bool) -> Request | None:
        """The next request, or the next that is not long; None when there is none."""
        short, long = self._short.peek(), self._long.peek() if with_long else None
        if short is None or long is None:
            return short or long
        return min(short, long, key=self._order)

    def remove(self, request_id: str) -> Request | None:
        """Take out a request by id, if it waits here."""
        return self._short.remove(request_id) or self._long.remove(request_id)
