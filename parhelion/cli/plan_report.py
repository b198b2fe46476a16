"""What ``parhelion plan`` says, as records: for its tables and its JSON alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parhelion.distributed.memory import RankMemory
from parhelion.distributed.planner import Fit, LayoutPlan, Planned, Workload
from parhelion.distributed.step_model import PipelineTime


@dataclass(frozen=True)
class PlannedTime:
    """A predicted time and how it is known.

    Attributes:
        ms: in all.
        measured, scaled, floor, links, host: shares of it: kernels as a pack measured them, scaled from what it
            measured, at a fraction of the device's limits; collectives by the links' model; what the host does.
        bubble: share of the time that a stage of a pipeline waits in, on average.
    """

    ms: float
    measured: float
    scaled: float
    floor: float
    links: float
    host: float
    bubble: float


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes of the fullest rank: ``weights`` and ``kv_cache`` computed, the others estimated.

    Attributes:
        kv_tokens: tokens that a replica's cache holds.
        num_requests: of the asked length that fit a replica at once.
    """

    total: int
    weights: int
    kv_cache: int
    activations: int
    graphs: int
    reserved: int
    kv_tokens: int
    num_requests: int


@dataclass(frozen=True)
class PlannedLayout:
    """A layout, of all GPUs, with ``batch`` requests in its fullest replica."""

    tp: int
    pp: int
    dp: int
    batch: int
    busy_replicas: int
    tpot: PlannedTime
    prefill: PlannedTime
    request_s: float
    tokens_per_s: float
    memory: PlannedMemory


@dataclass(frozen=True)
class RefusedLayouts:
    """Layouts that were refused for one reason."""

    reason: str
    layouts: tuple[str, ...]


@dataclass(frozen=True)
class PlannedFit:
    """What a rank holds by quantization; ``memory`` is None where the model cannot be divided so."""

    quantization: str
    tp: int
    pp: int
    memory: PlannedMemory | None


@dataclass(frozen=True)
class PlanReport:
    """All that the command prints.

    Attributes:
        layouts: the best first.
        why: sentences on the first's place.
        assumptions: sentences on where the figures are from.
    """

    model: str
    quantization: str
    device: str
    num_gpus: int
    gpus_per_node: int
    workload: Workload
    layouts: tuple[PlannedLayout, ...]
    why: tuple[str, ...]
    refused: tuple[RefusedLayouts, ...]
    fits: tuple[PlannedFit, ...]
    assumptions: tuple[str, ...]


def planned_layouts(planned: Planned, workload: Workload, most: int) -> tuple[PlannedLayout, ...]:
    """The first of the ranked."""
    return tuple(_layout(each, workload) for each in planned.ranked[:most])


def refused_layouts(planned: Planned) -> tuple[RefusedLayouts, ...]:
    """By their reasons, in order."""
    found: dict[str, list[str]] = {}
    for each in planned.refused:
        found.setdefault(each.reason, []).append(str(each.layout))
    return tuple(RefusedLayouts(reason, tuple(layouts)) for reason, layouts in found.items())


def planned_fits(fits: Sequence[Fit], workload: Workload) -> tuple[PlannedFit, ...]:
    """With what a replica then holds."""
    return tuple(
        PlannedFit(each.quantization, each.tp, each.pp, None if each.memory is None else _memory(each.memory, workload))
        for each in fits
    )


def planned_time(time: PipelineTime) -> PlannedTime:
    """With the shares of its parts."""
    cost = time.cost
    of = cost.times(1 / cost.total)
    return PlannedTime(cost.total / 1e3, of.measured, of.scaled, of.floor, of.links, of.host, time.bubble)


def _layout(each: LayoutPlan, workload: Workload) -> PlannedLayout:
    return PlannedLayout(
        tp=each.layout.tp,
        pp=each.layout.pp,
        dp=each.layout.dp,
        batch=each.batch,
        busy_replicas=each.busy_replicas,
        tpot=planned_time(each.tpot),
        prefill=planned_time(each.prefill),
        request_s=each.request_s,
        tokens_per_s=each.tokens_per_s,
        memory=_memory(each.memory, workload),
    )


def _memory(memory: RankMemory, workload: Workload) -> PlannedMemory:
    return PlannedMemory(
        total=memory.total,
        weights=memory.weights,
        kv_cache=memory.kv_cache,
        activations=memory.activations,
        graphs=memory.graphs,
        reserved=memory.reserved,
        kv_tokens=memory.kv_tokens,
        num_requests=memory.num_seqs(workload.request_len),
    )
