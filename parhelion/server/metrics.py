"""Prometheus metrics. The registry belongs to one application; nothing is global."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parhelion.server.replica_metrics import replica_metrics
from parhelion.types import EngineStats

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)


class ServerMetrics:
    """What the server measures itself, and the engine's counts of the moment of the scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.time_to_first_token = Histogram(
            "parhelion_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self.inter_token_latency = Histogram(
            "parhelion_inter_token_latency_seconds",
            "Between two tokens of one completion; tokens that arrive together share the time since the last.",
            buckets=_ITL_BUCKETS,
            registry=self.registry,
        )
        self.e2e_request_latency = Histogram(
            "parhelion_e2e_request_latency_seconds",
            "From the arrival of a request to its last token.",
            buckets=_E2E_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "parhelion_requests",
            "Completions ended, by finish reason; abort means that the client went away or the engine gave up.",
            ["finish_reason"],
            registry=self.registry,
        )
        self.errors = Counter(
            "parhelion_request_errors",
            "Requests answered with an error, by its type.",
            ["type"],
            registry=self.registry,
        )
        self._engine = _EngineCollector()
        self.registry.register(self._engine)

    def render(self, stats: EngineStats | None, *, alive: bool = True) -> bytes:
        """The exposition text.

        Args:
            stats: the engine's; None, where it did not tell them, keeps the last known.
            alive: the engine has not ended.
        """
        self._engine.refresh(stats, alive)
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engine's own counts, which it keeps itself: read on scrape, never counted twice."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self._told_at = time.monotonic()
        self._up = True

    def refresh(self, stats: EngineStats | None, alive: bool) -> None:
        if stats is not None:
            self._stats, self._told_at = stats, time.monotonic()
        replicas = self._stats.replicas
        self._up = alive and (not replicas or any(each.state.serves for each in replicas))

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        used = stats.kv_cache_usage
        yield _gauge("engine_up", "1 while the engine lives, or one of several.", float(self._up))
        age = "Time since the engine told the figures below: it is too busy to, or hangs, if this grows."
        yield _gauge("engine_stats_age_seconds", age, time.monotonic() - self._told_at)
        yield _gauge("requests_running", "Requests that are being computed.", stats.num_running)
        yield _gauge("requests_waiting", "Requests that wait for room.", stats.num_waiting)
        yield _gauge("kv_cache_usage_ratio", "Share of the KV blocks that a request refers to.", used)
        yield _gauge("kv_blocks_in_use", "KV blocks that a request refers to.", stats.num_blocks_in_use)
        yield _gauge("kv_blocks_cached", "KV blocks kept only for reuse by equal prefixes.", stats.num_blocks_cached)
        yield _gauge("cuda_graphs", "CUDA graphs captured so far.", stats.num_graphs)
        yield _gauge("cuda_graph_bytes", "Device memory that the graphs take.", stats.graph_bytes)
        yield _counter(
            "prefix_cache_queried_tokens",
            "Prompt tokens looked up in the prefix cache.",
            stats.prefix_cache_queried_tokens_total,
        )
        yield _counter(
            "prefix_cache_hit_tokens",
            "Prompt tokens found in the prefix cache.",
            stats.prefix_cache_hit_tokens_total,
        )
        yield _counter("preemptions", "Times a running request gave up its blocks.", stats.preemptions_total)
        yield _counter("prompt_tokens", "Prompt tokens taken in.", stats.prompt_tokens_total)
        yield _counter("generation_tokens", "Tokens generated.", stats.generation_tokens_total)
        yield _counter("guessed_tokens", "Tokens that were guessed ahead.", stats.guessed_tokens_total)
        yield _counter("accepted_tokens", "Tokens that were guessed right.", stats.accepted_tokens_total)
        yield _counter("checked_rows", "Times that a request's guesses were checked.", stats.checked_rows_total)
        if stats.acceptance_rate is not None and stats.mean_accepted_length is not None:
            yield _gauge("acceptance_ratio", "Share of the guessed tokens that were right.", stats.acceptance_rate)
            length = "Tokens that a request gained at a time when its guesses were checked, on average."
            yield _gauge("mean_accepted_length", length, stats.mean_accepted_length)
            yield _gauge("speculation_gain_ratio", "Tokens/s with guesses over those without.", stats.speculation_gain)
        yield from replica_metrics(stats.replicas, self._up)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"parhelion_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"parhelion_{name}", text, value=value)
