"""The engine core with everybody who guesses, before a simulated device that checks every row: any arrivals, aborts and
times that steps take.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, count
from types import SimpleNamespace
from typing import Any

import pytest

from parhelion.engine import core as core_module
from parhelion.engine.core import EngineCore
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import Drafted, Proposal, StepResult
from parhelion.scheduler import Request, SchedulerConfig, StepPlan
from parhelion.speculative import Drafting, DraftingAhead, NgramProposer, Pace, Speculation, Speculator
from tests.scheduler.simulation import Computed, SimulatedDevice, only_samples, reference_output

from .noop import assert_empty
from .requests import add_request

MOST_GUESSES = 3
LONGEST = 40


class SimulatedWorker:
    """Runs steps on a ``SimulatedDevice``.

    Attributes:
        num_behind_guesses: rows that were planned before guesses of theirs were checked.
    """

    graphs = None

    def __init__(self, config: SchedulerConfig, chances: random.Random) -> None:
        self._device = SimulatedDevice(config, chances)
        self._done: dict[int, tuple[StepPlan, Computed]] = {}
        self.num_behind_guesses = 0

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        assert [request.request_id for request in admitted] == [each.request_id for each in plan.admissions]
        awaited = only_samples(*self._done[plan.awaits]) if plan.awaits is not None else {}
        computed = self._device.run(plan, awaited)
        self.num_behind_guesses += sum(row.unchecked > 0 for row in plan.rows)
        self._done[plan.step] = plan, computed
        drafted = Drafted(computed.drafted, len(computed.drafted), 0.1) if plan.follows else None
        proposals = [Proposal(name, *proposal) for name, proposal in computed.proposals.items()]
        return StepResult(computed.sampled, [None] * len(computed.sampled), [], drafted, proposals)


def speculator(kind: str, num_groups: int) -> Speculator:
    pace = Pace() if kind.endswith("auto") else None
    if kind.startswith("n-grams"):
        return Speculation(NgramProposer(), MOST_GUESSES, pace)
    needs_states = kind.startswith("head")
    if num_groups > 1:
        return DraftingAhead(MOST_GUESSES, 0.2, pace, needs_states)
    return Drafting(MOST_GUESSES, 0.2, pace, needs_states, on_device="on a device" in kind)


class Life:
    """What becomes of random requests.

    Attributes:
        requests, outputs: by name.
        aborted: names.
    """

    def __init__(self, core: EngineCore, chances: random.Random, longest_prompt: int) -> None:
        self.requests: dict[str, AddRequest] = {}
        self.outputs: defaultdict[str, list[int]] = defaultdict(list)
        self.aborted: set[str] = set()
        self._core = core
        self._chances = chances
        self._longest_prompt = longest_prompt

    def run(self, num_events: int) -> None:
        """So many arrivals, steps and aborts, and then to the end."""
        for _ in range(num_events):
            event = self._chances.random()
            if event < 0.2:
                self._add(f"r{len(self.requests)}")
            elif event < 0.96 or not self.requests:
                self._step()
            else:
                name = self._chances.choice(list(self.requests))
                self.aborted |= {name} if self._core.abort(name) else set()
        while self._core.has_work:
            self._step()

    def _add(self, name: str) -> None:
        length = self._chances.randint(1, self._longest_prompt)
        # Texts that repeat themselves, so that n-grams are found.
        prompt = (self._chances.choice([(1, 2, 3, 4), (2,), (3, 1)]) * length)[:length]
        stops = self._chances.choice([(), (), (0,)])
        self.requests[name] = add_request(
            name, prompt, stop_token_ids=stops, max_tokens=self._chances.randint(1, LONGEST - length)
        )
        self._core.add(self.requests[name])

    def _step(self) -> None:
        for token in self._core.step():
            assert token.request_id not in self.aborted
            self.outputs[token.request_id].append(token.token_id)
        self._core.check_integrity()


KINDS = ["n-grams", "n-grams, auto", "draft model", "draft model, auto", "head, auto"]
ON_DEVICE = ["draft model on a device", "draft model on a device, auto", "head on a device, auto"]


@pytest.mark.parametrize(
    ("kind", "num_groups"), [*((kind, num) for kind in KINDS for num in (1, 3)), *((kind, 1) for kind in ON_DEVICE)]
)
@pytest.mark.parametrize("overlap", [True, False])
def test_texts_are_those_without_guesses_and_nothing_is_left(
    kind: str, num_groups: int, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_guessed = num_behind_guesses = 0
    for seed in range(6):
        chances = random.Random(seed)
        config = SchedulerConfig(
            num_blocks=chances.randint(12, 40),
            block_size=chances.randint(1, 4),
            max_num_seqs=4,
            max_num_batched_tokens=4 + chances.randint(0, 20),
            max_model_len=LONGEST,
            num_groups=num_groups,
        )
        # Steps take long or short, so that guesses pay now and then.
        times = accumulate(random.Random(seed + each).random() ** 4 for each in count())
        monkeypatch.setattr(core_module, "time", SimpleNamespace(perf_counter=times.__next__))
        guesser = speculator(kind, num_groups)
        worker = SimulatedWorker(config, chances)
        core = EngineCore(config, worker, overlap=overlap, speculation=guesser)
        life = Life(core, random.Random(seed), min(12, config.num_storable_tokens - 1))
        life.run(num_events=150)
        for name, request in life.requests.items():
            alone = Request(name, request.prompt_token_ids, request.max_tokens, frozenset(request.stop_token_ids))
            whole, _ = reference_output(config, alone)
            got = life.outputs[name]
            assert got == (whole[: len(got)] if name in life.aborted else whole), f"{name}, seed {seed}"
        assert_empty(core)
        core.close()
        num_guessed += core.stats().guessed_tokens_total
        num_behind_guesses += worker.num_behind_guesses
    assert num_guessed > 0
    assert (num_behind_guesses > 0) == (overlap and kind in ON_DEVICE)


class Waited:
    """A step on its way."""

    def __init__(self, result: StepResult, events: list[str]) -> None:
        self._result = result
        self._events = events

    def wait(self) -> StepResult:
        self._events.append("waited")
        return self._result


class WaitedWorker(SimulatedWorker):
    """Notes when a step was handed over and when somebody has waited for it."""

    def __init__(self, config: SchedulerConfig, events: list[str]) -> None:
        super().__init__(config, random.Random(0))
        self._events = events

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> Waited:  # type: ignore[override]
        self._events.append("handed over")
        return Waited(super().execute(plan, admitted), self._events)


class ToldSpeculation(Speculation):
    """Notes when it is told what a step took."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(NgramProposer(), MOST_GUESSES)
        self._events = events

    def observe(self, *about: Any) -> None:
        self._events.append("told")
        super().observe(*about)


def test_who_guesses_is_told_what_a_step_took_while_the_device_computes_the_next_one() -> None:
    config = SchedulerConfig(
        num_blocks=40, block_size=4, max_num_seqs=4, max_num_batched_tokens=24, max_model_len=LONGEST
    )
    events: list[str] = []
    core = EngineCore(config, WaitedWorker(config, events), speculation=ToldSpeculation(events))
    core.add(add_request("a", [1, 2, 3], max_tokens=6))
    while core.has_work:
        core.step()
    core.stats()
    core.close()
    step = ["handed over", "told", "waited"]
    # The first two are the prompt's step and the first that only decodes; of the last one the counts are to know.
    assert events[:4] == ["handed over", "waited"] * 2
    assert events[4:-1] == step * (len(events[4:-1]) // 3)
    assert events[-1] == "told"
