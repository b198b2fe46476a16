"""How the server and what is behind it are."""

from __future__ import annotations

from parhelion.server.context import ServingContext
from parhelion.server.responses import Health, ReplicaHealth


def health_of(context: ServingContext) -> Health:
    """The answer of ``/health``."""
    replicas = context.engine.replicas
    serving = sum(each.serves for each in replicas)
    if context.engine.is_dead or (replicas and not serving):
        status = "engine_dead"
    elif context.admission.draining:
        status = "draining"
    else:
        status = "degraded" if serving < len(replicas) else "ok"
    if not replicas:
        return Health(status)
    each_health = [
        ReplicaHealth(each.replica, each.status, each.restarts, each.error, each.retry_s) for each in replicas
    ]
    return Health(status, serving, each_health)
