"""How long a step takes on a rank and in a pipeline: kernels, collectives, and stages that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from parhelion.distributed.collectives import Fabric
from parhelion.distributed.kernel_times import KernelTimes, StepRows
from parhelion.distributed.layouts import Layout
from parhelion.distributed.model_size import ELEMENT, ModelSize
from parhelion.ops.contract import Contract
from parhelion.ops.registry import needs_other_ranks, needs_single_rows, own_parts
from parhelion.ops.ways import Way, quickest

LIKELIEST = 16
"""Bytes of a rank's likeliest token and its logit."""

CHUNKS = (512, 1024, 2048, 4096)
"""Tokens of a prompt's steps that are tried where a pipeline has to be filled, beside the most that a step takes."""


FIRST_TOKEN_US = 1600.0
"""The host's part until a first token: taking the request in, planning its step, reading the token back. It is the
median of what one prompt took beyond its kernels and links: 1.35, 1.64 and 2.39 ms on H200s (8B, 1.7B, 8B on two
ranks), 1.33 and 2.02 ms on an H100 (8B, 1.7B).
"""


@dataclass(frozen=True)
class Cost:
    """Microseconds, by how they are known.

    Attributes:
        measured: a pack measured these kernels at this M.
        scaled: a pack measured the op with other sizes, or on another device.
        floor: the device's limits at a stated fraction.
        links: collectives and hand-overs: by the links' model, or by a pack with what follows them.
        host: of which no device has any part.
    """

    measured: float = 0.0
    scaled: float = 0.0
    floor: float = 0.0
    links: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.kernels + self.links + self.host

    @property
    def kernels(self) -> float:
        """What is computed."""
        return self.measured + self.scaled + self.floor

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> Cost:
        """So many of them."""
        return Cost(*(factor * getattr(self, each.name) for each in fields(self)))


@dataclass(frozen=True)
class RankCalls:
    """What one rank calls in a step, its layers' sizes divided.

    Attributes:
        ways: what all layers and the last norm call, with counts, under each set of fusions.
        blocks: what a layer that is not the first calls under each, with other ranks and by itself.
        before: what stands before the layers and sees every token.
        behind: what sees one token a request, which is counted as if all of it stood behind them.
        shared: what all layers call together with other ranks, with counts, under each set of fusions: of each such
            contract ``ways`` has the part that a rank does by itself, and the rest is a sum over the ranks.
        head: the ways to compute the output head, which sees one token a request too.
    """

    ways: tuple[Counter[Contract], ...]
    blocks: tuple[Way, ...]
    before: tuple[Contract, ...]
    behind: tuple[Contract, ...]
    shared: tuple[Counter[Contract], ...] = ()
    head: tuple[Way, ...] = ((),)


CallsOf = Callable[[int], RankCalls]
"""What a rank calls where so many share each layer."""


@dataclass(frozen=True)
class StageTimes:
    """One step on the ranks of a pipeline.

    Attributes:
        layers: of all layers together, all-reduces included.
        before, behind: of the first and the last stage beside their layers.
        hand_overs: between the stages.
        shares: of the layers that each stage has.
    """

    layers: Cost
    before: Cost
    behind: Cost
    hand_overs: Cost
    shares: tuple[float, ...] = (1.0,)

    @property
    def pp(self) -> int:
        """Number of stages."""
        return len(self.shares)

    @cached_property
    def whole(self) -> Cost:
        """A step from the first stage to the last."""
        return self.layers + self.before + self.behind + self.hand_overs

    @cached_property
    def slowest(self) -> Cost:
        """The stage that takes longest, and its hand-over."""
        if self.pp == 1:
            return self.whole
        stages = [self.layers.times(share) for share in self.shares]
        stages[0] += self.before
        stages[-1] += self.behind
        return max(stages, key=lambda cost: cost.total) + self.hand_overs.times(1 / (self.pp - 1))


@dataclass(frozen=True)
class PipelineTime:
    """Attributes:
    cost: until the step or steps are done.
    bubble: share of that in which a stage waits, on average.
    """

    cost: Cost
    bubble: float


@dataclass
class StepModel:
    """Times of steps of a model in a layout.

    Attributes:
        model: whole.
        calls_of: what a rank of it calls.
        times: of kernels.
        fabric: of links.
    """

    model: ModelSize
    calls_of: CallsOf
    times: KernelTimes
    fabric: Fabric
    _calls: dict[int, RankCalls] = field(default_factory=dict, init=False)
    _stages: dict[tuple[int, int, StepRows, int], StageTimes] = field(default_factory=dict, init=False)

    def tpot(self, layout: Layout, batch: int, context: int) -> PipelineTime:
        """A token of each of a replica's requests.

        A pipeline keeps as many groups of requests under way as it has stages, or as there are requests.

        Args:
            batch: requests of a replica.
            context: tokens of each on average, the new one included.
        """
        groups = min(layout.pp, batch)
        size = -(-batch // groups)
        stages = self.stages(layout, StepRows((1,) * size, (context,) * size), size)
        busy = stages.slowest.times(groups)
        return _pipelined(max(stages.whole, busy, key=lambda cost: cost.total), stages, groups)

    def prefill(self, layout: Layout, batch: int, input_len: int, max_tokens: int) -> PipelineTime:
        """All prompts of a replica's requests, in steps of at most ``max_tokens``, until the first tokens are there."""
        sizes = {max_tokens} if layout.pp == 1 else {max_tokens, *(size for size in CHUNKS if size < max_tokens)}
        found = [self._prefill(layout, batch, input_len, size) for size in sorted(sizes)]
        best = min(found, key=lambda each: each.cost.total)
        return replace(best, cost=best.cost + Cost(host=FIRST_TOKEN_US))

    def _prefill(self, layout: Layout, batch: int, input_len: int, max_tokens: int) -> PipelineTime:
        full, rest = divmod(batch * input_len, max_tokens)
        stages = [
            self._prompt_stages(layout, size, input_len) for size in [max_tokens] * (full > 0) + [rest] * (rest > 0)
        ]
        counts = [full] * (full > 0) + [1] * (rest > 0)
        cost = stages[0].whole
        for number, (each, count) in enumerate(zip(stages, counts, strict=True)):
            cost += each.slowest.times(count - (number == 0))
        return _pipelined(cost, stages[0], full + (rest > 0))

    def _prompt_stages(self, layout: Layout, num_tokens: int, input_len: int) -> StageTimes:
        if num_tokens < input_len:
            # On average over a prompt's steps; what attention does is linear in it.
            rows = StepRows((num_tokens,), ((input_len + num_tokens) // 2,))
            return self.stages(layout, rows, 1)
        whole, rest = divmod(num_tokens, input_len)
        lens = (input_len,) * whole + (rest,) * (rest > 0)
        return self.stages(layout, StepRows(lens, lens), whole)

    def stages(self, layout: Layout, rows: StepRows, num_sampled: int) -> StageTimes:
        """A step of some rows, ``num_sampled`` of which are answered with a token."""
        key = (layout.tp, layout.pp, rows, num_sampled)
        if key not in self._stages:
            self._stages[key] = self._stages_of(layout, rows, num_sampled)
        return self._stages[key]

    def _stages_of(self, layout: Layout, rows: StepRows, num_sampled: int) -> StageTimes:
        if layout.tp not in self._calls:
            self._calls[layout.tp] = self.calls_of(layout.tp)
        calls, hidden = self._calls[layout.tp], rows.num_tokens * self.model.hidden_size * ELEMENT
        reduce_us = self.fabric.all_reduce_us(hidden, layout.tp)
        likeliest = num_sampled * layout.tp * LIKELIEST
        sampled = StepRows((1,) * num_sampled, (1,) * num_sampled)
        # A layer's output comes as two tensors, hidden and residual.
        sent = self.fabric.sends_us(2 * hidden, layout.tp, layout.pp)
        return StageTimes(
            layers=self._layers(calls, rows, reduce_us),
            before=self._cost(dict.fromkeys(calls.before, 1), rows) + Cost(links=reduce_us),
            behind=self._cost(dict.fromkeys(calls.behind, 1), sampled)
            + self._cost(Counter(self._quickest(calls.head, sampled)), sampled)
            + Cost(links=self.fabric.all_gather_us(likeliest, layout.tp)),
            hand_overs=Cost(links=sent),
            shares=tuple(len(stage.layers) / self.model.num_layers for stage in self.model.stages(layout.pp)),
        )

    def _layers(self, calls: RankCalls, rows: StepRows, reduce_us: float) -> Cost:
        """Under the set of fusions that a server takes: the first, or another that is known to be quicker.

        Where a pack has measured whole blocks, launches are as far from their sum as they are there. Two sums a layer,
        each with what follows it; where a pack has measured both as one, as that.
        """
        number = quickest(calls.blocks, rows.num_tokens, _TimesOf(self.times, rows))
        alone = self._cost(calls.ways[number], rows)
        beyond_us = self.times.beyond_launches_us(own_parts(calls.blocks[number]), rows.num_tokens)
        cost = alone.times(1 + self.model.num_layers * beyond_us / alone.total)
        cost += Cost(links=2 * self.model.num_layers * reduce_us)
        for contract, count in (calls.shared[number] if calls.shared else {}).items():
            together_us = self.times.shared_us(contract, rows.num_tokens)
            if together_us is not None:
                apart = self._cost(Counter(own_parts([contract])), rows) + Cost(links=reduce_us)
                cost += (Cost(links=together_us) + apart.times(-1)).times(count)
        return cost

    def _quickest(self, ways: tuple[Way, ...], rows: StepRows) -> Way:
        """The way that a server takes: the first, or another that is known to be quicker."""
        return ways[quickest(ways, rows.num_tokens, _TimesOf(self.times, rows))]

    def _cost(self, counts: Mapping[Contract, int], rows: StepRows) -> Cost:
        return summed(self._one(contract, rows).times(count) for contract, count in counts.items())

    def _one(self, contract: Contract, rows: StepRows) -> Cost:
        time = self.times.of(contract, rows)
        return Cost(**{time.known: time.us})


@dataclass(frozen=True)
class _TimesOf:
    """What is known of a step's rows; of ops that the pack does not cover nothing is, nor of sums over ranks that were
    not measured with what follows them, nor of what such rows cannot be given to.
    """

    times: KernelTimes
    rows: StepRows

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        if not self._takes((contract,)):
            return None
        if needs_other_ranks(contract):
            return self.times.shared_us(contract, num_tokens)
        return self.times.of(contract, self.rows).us if self.times.covers(contract, num_tokens) else None

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        return self.times.block_us(way, num_tokens) if self._takes(way) else None

    def _takes(self, way: Way) -> bool:
        return set(self.rows.query_lens) <= {1} or not needs_single_rows(way)


def summed(costs: Iterable[Cost]) -> Cost:
    """All together."""
    return sum(costs, Cost())


def _pipelined(cost: Cost, stages: StageTimes, num_steps: int) -> PipelineTime:
    """With the share of the time that a stage of average length does not work in.

    Of what is on the way through the pipeline, a rank does its own part; the rest of the time it waits for others.
    """
    busy = num_steps * stages.whole.total / stages.pp
    return PipelineTime(cost, max(0.0, 1 - busy / cost.total))
