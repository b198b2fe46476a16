"""Load by several client processes: one alone reads some thousand events a second, less than a server may send."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Self

from parhelion.bench.serving import ClientShare, RequestRecord, ServingSettings, generate_load
from parhelion.platform.garbage import keep_for_good

MOST_CLIENTS = 8

_READY_S = 0.2
"""From when all clients have been told until the first request."""

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


class LoadClients:
    """Processes that send a load together. They live until the block ends: starting them takes seconds.

    Args:
        count: of them; one alone is this process.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> Self:
        self._pool: ProcessPoolExecutor | None = None
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, _meet, (context.Barrier(self._count),))
            # As many are started as there are tasks, and none takes any before all are there.
            list(self._pool.map(abs, range(self._count)))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, url: str, model: str, settings: ServingSettings, api_key: str | None = None) -> Load:
        """Send all requests, from processes that begin together: no more of them than requests are in flight.

        Args:
            url: the server's.
            model: the name it goes by there.
            settings: of all clients together.
            api_key: of the server.
        """
        count = min(self._count, settings.concurrency, settings.num_requests)
        if self._pool is None or count == 1:
            return Load(*_client(url, model, settings, ClientShare(), api_key))
        start = time.perf_counter() + _READY_S
        shares = [ClientShare(number, count, start) for number in range(count)]
        done = [self._pool.submit(_client, url, model, settings, share, api_key) for share in shares]
        parts = [each.result() for each in done]
        return Load([record for records, _ in parts for record in records], max(busy for _, busy in parts))


def _meet(others: Barrier) -> None:
    keep_for_good(collect=False)
    others.wait(_START_TIMEOUT_S)


def _client(
    url: str, model: str, settings: ServingSettings, share: ClientShare, api_key: str | None
) -> tuple[list[RequestRecord], float]:
    began, computed = time.perf_counter(), time.process_time()
    records = asyncio.run(generate_load(url, model, settings, api_key, share=share))
    return records, (time.process_time() - computed) / (time.perf_counter() - began)
