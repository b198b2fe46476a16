"""Load by several client processes: one alone reads some thousand events a second, less than a server may send."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

from parhelion.bench.serving import ClientShare, RequestRecord, ServingSettings, generate_load

MOST_CLIENTS = 8

_READY_S = 0.2
"""From when all clients are there until the first request."""

_START_TIMEOUT_S = 120.0
"""How long clients wait for each other, which import what they need."""


@dataclass(frozen=True)
class Load:
    """Attributes:
    records: of all requests.
    busy: share of the time in which the busiest client computed; near 1 the clients are what is measured.
    """

    records: list[RequestRecord]
    busy: float


def default_clients() -> int:
    """A quarter of the processors: the server needs some as well."""
    return max(1, min(MOST_CLIENTS, (os.cpu_count() or 1) // 4))


def run_load(url: str, model: str, settings: ServingSettings, num_clients: int, api_key: str | None = None) -> Load:
    """Send all requests from so many processes, which begin together.

    Args:
        settings: of all clients together.
        num_clients: of them no more than requests are in flight; one alone is this process.
    """
    count = min(num_clients, settings.concurrency, settings.num_requests)
    if count == 1:
        return Load(*_client(url, model, settings, ClientShare(), api_key))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _meet, (context.Barrier(count),)) as pool:
        # As many are started as there are tasks, and none takes any before all are there.
        list(pool.map(abs, range(count)))
        start = time.perf_counter() + _READY_S
        shares = [ClientShare(number, count, start) for number in range(count)]
        done = [pool.submit(_client, url, model, settings, share, api_key) for share in shares]
        parts = [each.result() for each in done]
    return Load([record for records, _ in parts for record in records], max(busy for _, busy in parts))


def _meet(others: Barrier) -> None:
    others.wait(_START_TIMEOUT_S)


def _client(
    url: str, model: str, settings: ServingSettings, share: ClientShare, api_key: str | None
) -> tuple[list[RequestRecord], float]:
    began, computed = time.perf_counter(), time.process_time()
    records = asyncio.run(generate_load(url, model, settings, api_key, share=share))
    return records, (time.process_time() - computed) / (time.perf_counter() - began)
