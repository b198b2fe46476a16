"""Who is served first: the order of requests, lists that keep it, and turns."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

from parhelion.config import SchedulingPolicy
from parhelion.scheduler.request import Request

Order = tuple[int, float, int]
"""Priority, arrival, sequence number: sorts requests from first to last, and no two are equal."""


def order_of(request: Request, policy: SchedulingPolicy, sequence: int) -> Order:
    """The request's place among all others. ``sequence`` counts arrivals and breaks ties."""
    priority = request.priority if policy == "priority" else 0
    return (priority, request.arrival, sequence)


def _order(request: Request) -> Order:
    return request.order


def insert_in_order(requests: list[Request], request: Request) -> None:
    """Insert into a list that is sorted by order."""
    insort(requests, request, key=_order)


def remove_in_order(requests: list[Request], request: Request) -> None:
    """Remove from a list that is sorted by order.

    Raises:
        ValueError: the request is not in the list.
    """
    index = bisect_left(requests, request.order, key=_order)
    if index == len(requests) or requests[index] is not request:
        raise ValueError(f"request {request.request_id!r} is not in this list")
    del requests[index]


def turns(running: list[Request], num_groups: int, awaited: int | None = None) -> Iterator[list[Request]]:
    """Which of the running requests the next step may compute, in their order; then others, if it can compute none of
    these.

    Of several groups it is as many as one has, those whose last step is the longest ago. A request of which a token is
    being sampled is in none, unless that is so in the ``awaited`` step.
    """
    if num_groups == 1:
        yield running
        return
    ready = [request for request in running if not request.num_pending or _awaits(request, awaited)]
    size = group_size(len(running), num_groups)
    if size < len(ready):
        chosen = set(heapq.nsmallest(size, ready, key=_planned_step))
        yield [request for request in ready if request in chosen]
    yield ready


def _awaits(request: Request, step: int | None) -> bool:
    """This step samples the only token that is to come."""
    return request.num_pending == 1 and request.planned_step == step


def group_size(num_requests: int, num_groups: int) -> int:
    """Requests of the largest of the groups."""
    return -(-num_requests // num_groups)


def _planned_step(request: Request) -> int:
    return request.planned_step
