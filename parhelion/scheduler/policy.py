"""Who is served first: the order of requests, and lists that keep it."""

from __future__ import annotations

from bisect import bisect_left, insort

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
