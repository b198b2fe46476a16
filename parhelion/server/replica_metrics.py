"""Prometheus figures of each of several replicas; those without a label are their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from parhelion.types import ReplicaStats

_Value = Callable[[ReplicaStats], float]

_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("requests_running", "Requests that the replica computes.", lambda one: one.stats.num_running),
    ("requests_waiting", "Requests that wait for room in the replica.", lambda one: one.stats.num_waiting),
    ("kv_cache_usage_ratio", "Share of its KV blocks that a request refers to.", lambda one: one.stats.kv_cache_usage),
)

_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    ("restarts", "Times that it was started again.", lambda one: one.state.restarts),
    (
        "prefix_cache_queried_tokens",
        "Prompt tokens looked up in its prefix cache.",
        lambda one: one.stats.prefix_cache_queried_tokens_total,
    ),
    (
        "prefix_cache_hit_tokens",
        "Prompt tokens found in its prefix cache.",
        lambda one: one.stats.prefix_cache_hit_tokens_total,
    ),
    ("preemptions", "Times a running request gave up its blocks.", lambda one: one.stats.preemptions_total),
    ("prompt_tokens", "Prompt tokens that it took in.", lambda one: one.stats.prompt_tokens_total),
    ("generation_tokens", "Tokens that it generated.", lambda one: one.stats.generation_tokens_total),
)


def replica_metrics(replicas: Sequence[ReplicaStats], up: bool) -> Iterator[Metric]:
    """The families ``parhelion_replica_*`` with the label ``replica``.

    Args:
        replicas: as last known; none, where there is one engine, make no families.
        up: any of them lives.
    """
    if not replicas:
        return
    yield _filled(
        GaugeMetricFamily("parhelion_replica_up", "1 while the replica serves.", labels=["replica"]),
        replicas,
        lambda one: float(up and one.state.serves),
    )
    for name, text, value in _GAUGES:
        yield _filled(GaugeMetricFamily(f"parhelion_replica_{name}", text, labels=["replica"]), replicas, value)
    for name, text, value in _COUNTERS:
        yield _filled(CounterMetricFamily(f"parhelion_replica_{name}", text, labels=["replica"]), replicas, value)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, replicas: Sequence[ReplicaStats], value: _Value
) -> GaugeMetricFamily | CounterMetricFamily:
    for one in replicas:
        family.add_metric([str(one.state.replica)], value(one))
    return family
