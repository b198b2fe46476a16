"""From a model, GPUs and a workload to the layouts that fit, ranked, with what they take and why one is preferred."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from parhelion.distributed.layouts import Layout, divisors, layouts, why_not
from parhelion.distributed.memory import RankMemory, rank_memory, why_no_room
from parhelion.distributed.model_size import ModelSize
from parhelion.distributed.step_model import PipelineTime, StepModel
from parhelion.errors import ConfigError

Objective = Literal["latency", "throughput"]

NEARLY = 1.01
"""Layouts within so much of the best are equal; of those the one with the fewest ranks a replica is preferred."""


@dataclass(frozen=True)
class Workload:
    """What is asked of the GPUs.

    Attributes:
        input_len, output_len: tokens of a request.
        objective: the shortest request, or the most tokens a second.
        batch: requests at once, over all replicas. None: one for latency, and as many as fit for throughput.
        max_num_seqs: requests of a replica at once, at most.
        max_num_batched_tokens: of a step, at most.
    """

    input_len: int = 512
    output_len: int = 128
    objective: Objective = "latency"
    batch: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096

    def __post_init__(self) -> None:
        names = ("input_len", "output_len", "batch", "max_num_seqs", "max_num_batched_tokens")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")

    @property
    def request_len(self) -> int:
        """Tokens of a request in the end."""
        return self.input_len + self.output_len

    @property
    def context(self) -> int:
        """Tokens that a new one sees, half way through the answer."""
        return self.input_len + (self.output_len + 1) // 2


@dataclass(frozen=True)
class LayoutPlan:
    """What a layout takes.

    Attributes:
        batch: requests of the fullest replica.
        busy_replicas: those that have any.
        memory: of the fullest rank.
        tpot: a token of each request of a replica.
        prefill: all prompts of a replica.
        request_s: prefill, and then the rest of the answer: seconds.
        tokens_per_s: answered, by all replicas together, prompts included in the time.
    """

    layout: Layout
    batch: int
    busy_replicas: int
    memory: RankMemory
    tpot: PipelineTime
    prefill: PipelineTime
    request_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Refused:
    """A layout that cannot be.

    Attributes:
        reason: why, and what would do.
        is_full: its ranks have too little memory, and those of more GPUs might not.
    """

    layout: Layout
    reason: str
    is_full: bool = False


@dataclass(frozen=True)
class Fit:
    """What a rank holds of a model in one quantization, or why it cannot be divided so.

    Attributes:
        tp, pp: of the layout.
        memory: of the fullest rank; None if the model cannot be divided so.
    """

    quantization: str
    tp: int
    pp: int
    memory: RankMemory | None


@dataclass(frozen=True)
class Planned:
    """Attributes:
    ranked: the best first; at least one.
    refused: the others.
    why: sentences on the first's place.
    """

    ranked: tuple[LayoutPlan, ...]
    refused: tuple[Refused, ...]
    why: tuple[str, ...]


def plan_layouts(
    steps: StepModel, memory_bytes: int, num_gpus: int, workload: Workload, tp: int | None = None, pp: int | None = None
) -> Planned:
    """All ways to serve a workload with so many GPUs, ranked.

    Args:
        steps: of the model on the GPUs.
        memory_bytes: of one GPU.
        tp, pp: only layouts with these; None: any.

    Raises:
        ConfigError: no layout will do; the message says why, and what would.
    """
    if num_gpus < 1 or steps.fabric.gpus_per_node < 1:
        raise ConfigError(f"{num_gpus} GPUs in nodes of {steps.fabric.gpus_per_node} are none; pass at least 1 of each")
    asked = [each for each in layouts(num_gpus) if tp in (None, each.tp) and pp in (None, each.pp)]
    if not asked:
        raise ConfigError(_no_such_layout(steps, num_gpus, 1 if tp is None else tp, 1 if pp is None else pp))
    found: list[LayoutPlan] = []
    refused: list[Refused] = []
    for layout in asked:
        outcome = _planned(steps, memory_bytes, layout, workload)
        if isinstance(outcome, LayoutPlan):
            found.append(outcome)
        else:
            refused.append(outcome)
    if not found:
        raise ConfigError(_nothing_fits(steps, memory_bytes, num_gpus, workload, refused))
    ranked = _ranked(found, workload.objective)
    return Planned(tuple(ranked), tuple(refused), tuple(_why(ranked, workload)))


def what_fits(
    models: Sequence[ModelSize],
    layout: Layout,
    num_gpus: int,
    memory_bytes: int,
    gpus_per_node: int,
    workload: Workload,
) -> tuple[Fit, ...]:
    """The memory of a rank by quantization and tp up to that of a node, with the layout's stages.

    Args:
        models: one in several quantizations.
        layout: whose tp is among those that are shown.
        num_gpus: in all.
    """
    sizes = [tp for tp in divisors(num_gpus // layout.pp) if tp <= gpus_per_node or tp == layout.tp]
    found = []
    for model in models:
        for tp in sizes:
            memory = None
            if why_not(model, Layout(tp, layout.pp, num_gpus // (tp * layout.pp)), gpus_per_node) is None:
                memory = _memory(model, Layout(tp, layout.pp), memory_bytes, workload)
            found.append(Fit(model.quantization.name, tp, layout.pp, memory))
    return tuple(found)


def _memory(model: ModelSize, layout: Layout, memory_bytes: int, workload: Workload) -> RankMemory:
    return rank_memory(model, layout, memory_bytes, workload.max_num_batched_tokens, workload.max_num_seqs)


def _planned(steps: StepModel, memory_bytes: int, layout: Layout, workload: Workload) -> LayoutPlan | Refused:
    """A layout's plan, or why it cannot be."""
    reason = why_not(steps.model, layout, steps.fabric.gpus_per_node)
    if reason is not None:
        return Refused(layout, reason)
    memory = _memory(steps.model, layout, memory_bytes, workload)
    reason = why_no_room(memory, workload.request_len)
    if reason is not None:
        return Refused(layout, reason, is_full=True)
    fit = memory.num_seqs(workload.request_len)
    most = min(workload.max_num_seqs, fit)
    wanted = workload.batch or (1 if workload.objective == "latency" else most * layout.dp)
    batch = -(-wanted // layout.dp)
    if batch > fit:
        reason = f"{batch} requests a replica, and memory for {fit}: at most --batch {fit * layout.dp}"
        return Refused(layout, reason, is_full=True)
    if batch > most:
        return Refused(layout, f"{batch} requests a replica, and at most {most} may run: raise --max-num-seqs")
    tpot = steps.tpot(layout, batch, workload.context)
    prefill = steps.prefill(layout, batch, workload.input_len, workload.max_num_batched_tokens)
    request_s = (prefill.cost.total + (workload.output_len - 1) * tpot.cost.total) / 1e6
    return LayoutPlan(
        layout=layout,
        batch=batch,
        busy_replicas=min(wanted, layout.dp),
        memory=memory,
        tpot=tpot,
        prefill=prefill,
        request_s=request_s,
        tokens_per_s=wanted * workload.output_len / request_s,
    )


def _ranked(found: Sequence[LayoutPlan], objective: Objective) -> list[LayoutPlan]:
    def loss(each: LayoutPlan) -> float:
        return each.request_s if objective == "latency" else 1 / each.tokens_per_s

    best = min(map(loss, found))
    return sorted(
        found,
        key=lambda each: (
            0.0 if loss(each) <= NEARLY * best else loss(each),
            each.layout.tp * each.layout.pp,
            loss(each),
        ),
    )


def _why(ranked: Sequence[LayoutPlan], workload: Workload) -> Iterable[str]:
    """What the first does better than the best of each other way."""
    first = ranked[0]
    yield f"{first.layout}: {_account(first)}"
    others = [each for each in ranked[1:] if (each.layout.tp, each.layout.pp) != (first.layout.tp, first.layout.pp)]
    for name, size in (("tp", first.layout.tp), ("pp", first.layout.pp)):
        rest = [each for each in others if getattr(each.layout, name) != size]
        if rest:
            yield f"best with another {name}, {rest[0].layout}: {_account(rest[0])}{_beside(first, rest[0], workload)}"
    idle = first.layout.dp - first.busy_replicas
    if idle:
        ranks = first.layout.tp * first.layout.pp
        yield f"{idle} of {first.layout.dp} replicas have nothing to do: {_gpus(ranks * first.busy_replicas)} would do"


def _account(each: LayoutPlan) -> str:
    cost = each.tpot.cost
    waits = f", a stage idle for {each.tpot.bubble:.0%} of it" if each.layout.pp > 1 else ""
    return (
        f"TPOT {cost.total / 1e3:.2f} ms with {each.batch} a replica ({cost.kernels / 1e3:.2f} kernels, "
        f"{cost.links / 1e3:.2f} links{waits}), prefill {each.prefill.cost.total / 1e3:.1f} ms, "
        f"{each.tokens_per_s:,.0f} tokens/s"
    )


def _beside(first: LayoutPlan, other: LayoutPlan, workload: Workload) -> str:
    if workload.objective == "latency":
        return f"; a request takes {other.request_s / first.request_s:.2f} times as long"
    return f"; {other.tokens_per_s / first.tokens_per_s:.2f} times the tokens/s"


def _no_such_layout(steps: StepModel, num_gpus: int, tp: int, pp: int) -> str:
    """Why so many GPUs have no layout with these, and which numbers would do."""
    if tp < 1 or pp < 1:
        return f"tp {tp} and pp {pp} must be at least 1"
    said = f"{num_gpus} GPUs are no multiple of tp {tp} x pp {pp}"
    reason = why_not(steps.model, Layout(tp, pp), steps.fabric.gpus_per_node)
    if reason is not None:
        return f"{said}, and {reason}"
    return f"{said}; pass a multiple of {tp * pp}, such as --gpus {-(-num_gpus // (tp * pp)) * tp * pp}"


def _nothing_fits(
    steps: StepModel, memory_bytes: int, num_gpus: int, workload: Workload, refused: Sequence[Refused]
) -> str:
    """Why not, and the fewest GPUs that would do."""
    reasons = list(dict.fromkeys(each.reason for each in refused))
    too_full = [each.reason for each in refused if each.is_full]
    said = f"{steps.model.name} ({steps.model.quantization.name}) cannot be served so by {_gpus(num_gpus)}: "
    enough = _fewest_gpus(steps, memory_bytes, workload) if too_full else None
    way_out = f"; {_gpus(enough)} would do" if enough is not None else ""
    return said + "; ".join((too_full or reasons)[:1]) + way_out


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _fewest_gpus(steps: StepModel, memory_bytes: int, workload: Workload) -> int | None:
    """Of one replica that has room for a request, and for the batch if one is asked for; None if no number has."""
    batch = workload.batch or 1
    for num_gpus in sorted({tp * pp for tp in range(1, steps.model.num_heads + 1) for pp in range(1, 33)}):
        for each in layouts(num_gpus):
            if each.dp == 1 and why_not(steps.model, each, steps.fabric.gpus_per_node) is None:
                memory = _memory(steps.model, each, memory_bytes, workload)
                if memory.num_seqs(workload.request_len) >= batch:
                    return num_gpus
    return None
