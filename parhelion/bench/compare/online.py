"""Servers side by side under the same load: a closed loop of fixed concurrency, then Poisson arrivals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from parhelion.bench.compare.driver import RunnerError
from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.offline import Bench, kv_cache_bytes
from parhelion.bench.compare.results import LoadFigures, OnlineRow, spread
from parhelion.bench.compare.servers import ServerOptions, running
from parhelion.bench.compare.settings import OnlineSettings
from parhelion.bench.load_clients import LoadClients
from parhelion.bench.server_process import ServerProcess
from parhelion.bench.serving import ServingSettings, count_good, generate_load, summarize_load, wall_seconds
from parhelion.config import read_environment
from parhelion.errors import ParhelionError
from parhelion.platform.measure import Summary

RATE_SHARES = (0.3, 0.7, 1.1)
"""Of the slowest server's closed-loop throughput: low, middle, and more than it can serve."""

_MEMORY_SHARE = 0.45
_WARMUP_TOKENS = 8

Alive = list[tuple[Engine, ServerProcess]]

_BUSY = 0.8
"""Clients that compute for more of the time are what is measured, and no server."""


@dataclass(frozen=True)
class _Round:
    """What one run measured.

    Attributes:
        figures: by quantity.
        good_share: of its requests.
        client_busy: share of the time in which the busiest client computed.
        failed: requests.
        stricter: good requests a second by stricter limits of TPOT.
    """

    figures: dict[str, Summary]
    good_share: float
    client_busy: float
    failed: int
    stricter: dict[float, float]


def compare_online(engines: Sequence[Engine], bench: Bench, online: OnlineSettings) -> None:
    """Measure a model under each load. A server that fails is given up with its error recorded; the others go on."""
    groups = [[engine] for engine in engines] if bench.settings.sequential else [list(engines)]
    for group in groups:
        with LoadClients(online.clients) as clients, ExitStack() as servers:
            alive, errors = _start(group, bench, online, servers)
            closed = _measure(_load(bench, online, None), alive, errors, bench, online, clients)
            for rate in online.rates or rates_from(closed):
                _measure(_load(bench, online, rate), alive, errors, bench, online, clients)


def rates_from(closed: OnlineRow) -> list[float]:
    """Low, middle and saturating arrivals a second, from what the servers reached in the closed loop."""
    # With one server after the other the rates must be given: the first cannot know what the second reaches.
    reached = [figures.requests_per_s.median for figures in closed.engines.values()]
    return [float(f"{share * min(reached):.3g}") for share in RATE_SHARES] if reached else []


def _load(bench: Bench, online: OnlineSettings, rate: float | None) -> ServingSettings:
    """A closed loop, or an open one at a rate: nothing holds a request back there."""
    return ServingSettings(
        num_requests=online.num_requests,
        prompt_length=bench.settings.input_length,
        output_length=bench.settings.output_length,
        request_rate=math.inf if rate is None else rate,
        concurrency=online.concurrency if rate is None else online.num_requests,
        ttft_objective_ms=online.ttft_limit_ms,
        tpot_objective_ms=online.tpot_limit_ms,
        seed=bench.settings.seed,
    )


def _start(
    group: Sequence[Engine], bench: Bench, online: OnlineSettings, servers: ExitStack
) -> tuple[Alive, dict[str, str]]:
    """The servers that answer, and why others do not."""
    alive: Alive = []
    errors: dict[str, str] = {}
    sequences = max(online.concurrency, *bench.settings.batches)
    on_gpu = bench.probe.kind == "cuda"
    memory = kv_cache_bytes(bench.model, bench.settings, sequences, on_gpu)
    options = ServerOptions(bench.model, bench.settings, sequences, memory, _MEMORY_SHARE, bench.probe.kind, bench.logs)
    for engine in group:
        bench.say(f"{bench.model.name}: the server of {engine.name} starts")
        try:
            alive.append((engine, servers.enter_context(running(engine, options))))
        except RunnerError as error:
            bench.say(str(error))
            errors[engine.name] = str(error)
    return alive, errors


def _measure(
    load: ServingSettings,
    alive: Alive,
    errors: Mapping[str, str],
    bench: Bench,
    online: OnlineSettings,
    clients: LoadClients,
) -> OnlineRow:
    """All rounds of one load, server after server within each."""
    closed = math.isinf(load.request_rate)
    rounds: dict[str, list[_Round]] = {engine.name: [] for engine, _server in alive}
    problems = dict(errors)
    for number in range(bench.settings.rounds):
        what = f"{load.concurrency} in flight" if closed else f"{load.request_rate:g} requests/s"
        bench.say(f"{bench.model.name}: {what}, round {number + 1} of {bench.settings.rounds}")
        for engine, server in alive:
            if engine.name in problems:
                continue
            try:
                measured = _run(engine, server, load, online, clients, warm_up=number == 0)
            except ParhelionError as error:
                problems[engine.name] = str(error)
                bench.say(f"{engine.name}: {error}")
                continue
            if measured.client_busy > _BUSY:
                busy = f"{measured.client_busy:.0%}"
                bench.say(f"{engine.name}: a client computed for {busy} of the time: use more of them (--clients)")
            rounds[engine.name].append(measured)
    row = OnlineRow(
        model=bench.model.name,
        load="closed" if closed else "open",
        concurrency=load.concurrency if closed else None,
        rate=None if closed else load.request_rate,
        engines={name: _figures(each) for name, each in rounds.items() if each},
        errors=problems,
    )
    bench.recorder.put_online(row)
    return row


def _run(
    engine: Engine,
    server: ServerProcess,
    load: ServingSettings,
    online: OnlineSettings,
    clients: LoadClients,
    warm_up: bool,
) -> _Round:
    """One run.

    Raises:
        ParhelionError: no request succeeded.
    """
    # The key of this installation is nobody else's business.
    keys = read_environment().api_keys if engine.kind == "parhelion" else ()
    key = keys[0] if keys else None
    if warm_up:
        short = replace(load, request_rate=math.inf, output_length=min(_WARMUP_TOKENS, load.output_length))
        asyncio.run(generate_load(server.url, server.model, short, key))
    sent = clients.run(server.url, server.model, load, key)
    records = sent.records
    figures = {each.quantity: each.summary for each in summarize_load(records, load)}
    good_share = count_good(records, load) / len(records)
    stricter = {
        limit: count_good(records, replace(load, tpot_objective_ms=limit)) / wall_seconds(records)
        for limit in online.stricter_tpot_limits_ms
    }
    return _Round(figures, good_share, sent.busy, sum(bool(record.error) for record in records), stricter)


def _figures(rounds: Sequence[_Round]) -> LoadFigures:
    """Medians over the rounds of each round's percentiles and rates."""

    def over(quantity: str, figure: str) -> tuple[float, ...]:
        return tuple(getattr(each.figures[quantity], figure) for each in rounds)

    return LoadFigures(
        ttft_ms_p50=spread(over("TTFT", "median")),
        ttft_ms_p90=spread(over("TTFT", "p90")),
        ttft_ms_p99=spread(over("TTFT", "p99")),
        tpot_ms_p50=spread(over("TPOT", "median")),
        tpot_ms_p90=spread(over("TPOT", "p90")),
        tpot_ms_p99=spread(over("TPOT", "p99")),
        itl_ms_p50=spread(over("ITL", "median")),
        itl_ms_p90=spread(over("ITL", "p90")),
        itl_ms_p99=spread(over("ITL", "p99")),
        requests_per_s=spread(over("requests", "median")),
        output_tokens_per_s=spread(over("generated tokens", "median")),
        goodput_per_s=spread(over("goodput", "median")),
        good_share=spread([each.good_share for each in rounds]),
        failed=sum(each.failed for each in rounds),
        client_busy=max(each.client_busy for each in rounds),
        stricter={f"{limit:g}": spread([each.stricter[limit] for each in rounds]) for limit in rounds[0].stricter},
    )
