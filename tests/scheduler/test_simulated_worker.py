"""Random lives of a scheduler beside a simulated worker: any arrivals, aborts, overlap, pools, policies and guesses."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parhelion.errors import QueueFullError
from parhelion.scheduler import Request, SchedulerConfig

from .simulation import EOS, VOCAB_SIZE, Guesses, Simulation

PREFIXES = ((), (1, 2, 3, 4), (1, 2, 3, 4, 4, 3, 2, 1), (2,) * 6)


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    max_num_seqs = draw(st.integers(1, 6))
    return SchedulerConfig(
        num_blocks=draw(st.integers(3, 14)),
        block_size=draw(st.integers(1, 4)),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 12)),
        max_model_len=draw(st.sampled_from([12, 20, 40])),
        max_queue_len=draw(st.sampled_from([3, 100])),
        enable_prefix_caching=draw(st.booleans()),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        num_groups=draw(st.integers(1, 3)),
    )


@st.composite
def guessers(draw: st.DrawFn, config: SchedulerConfig) -> Guesses | None:
    made = draw(st.sampled_from([None, "here", *(("drafted", "on device") if config.num_groups == 1 else ("ahead",))]))
    chances = random.Random(draw(st.integers(0, 1 << 16)))
    return None if made is None else Guesses(made, draw(st.integers(1, 4)), chances)


@st.composite
def prompts(draw: st.DrawFn, config: SchedulerConfig) -> list[int]:
    longest = min(config.max_model_len, config.num_blocks * config.block_size) - 1
    tail = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=10))
    return [*draw(st.sampled_from(PREFIXES)), *tail][:longest]


@st.composite
def requests(draw: st.DrawFn, config: SchedulerConfig, index: int) -> Request:
    return Request(
        request_id=f"r{index}",
        prompt_token_ids=draw(prompts(config)),
        max_tokens=draw(st.one_of(st.none(), st.integers(1, 12))),
        stop_token_ids=frozenset(draw(st.sampled_from([(), (EOS,), (EOS, 3)]))),
        priority=draw(st.integers(-1, 2)),
        arrival=float(draw(st.integers(0, 3)) + index),
        use_prefix_cache_lookup=draw(st.integers(0, 4)) > 0,
    )


class SchedulerMachine(RuleBasedStateMachine):
    """The engine may do anything in any order, with up to four steps in flight."""

    simulation: Simulation
    num_added: int

    @initialize(config=configs(), data=st.data())
    def start(self, config: SchedulerConfig, data: st.DataObject) -> None:
        self.simulation = Simulation(config, data.draw(guessers(config)))
        self.num_added = 0

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        request = data.draw(requests(self.simulation.config, self.num_added))
        self.num_added += 1
        waiting = self.simulation.scheduler.stats().num_waiting
        try:
            self.simulation.add(request)
            assert waiting < self.simulation.config.max_queue_len
        except QueueFullError:
            assert waiting >= self.simulation.config.max_queue_len

    @precondition(lambda self: len(self.simulation.in_flight) < 4)
    @rule(steps=st.integers(1, 3), ahead=st.booleans())
    def schedule(self, steps: int, ahead: bool) -> None:
        for _ in range(steps):
            oldest = self.simulation.scheduler._running[:1]
            self.simulation.schedule(ahead)
            for request in oldest:
                assert request.slot >= 0 or request.fully_planned, "the first in order must never be preempted"

    @precondition(lambda self: self.simulation.in_flight)
    @rule()
    def update(self) -> None:
        self.simulation.update()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.num_added))
        known = f"r{index}" in self.simulation.scheduler._unfinished
        assert self.simulation.abort(f"r{index}") == known

    @invariant()
    def pending_tokens_are_in_flight(self) -> None:
        expected: dict[str, int] = {}
        for plan, _ in self.simulation.in_flight:
            for row in plan.rows:
                expected[row.request_id] = expected.get(row.request_id, 0) + row.num_samples
        for name, request in self.simulation.scheduler._unfinished.items():
            assert request.num_pending == expected.get(name, 0)

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.run_to_end(depth=1)


SchedulerMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestAnyOrderOfCalls = SchedulerMachine.TestCase


@settings(max_examples=200, deadline=None, print_blob=True)
@given(data=st.data(), depth=st.integers(0, 3))
def test_a_crowd_ends_with_the_tokens_that_each_would_have_alone(data: st.DataObject, depth: int) -> None:
    config = data.draw(configs().filter(lambda c: c.max_queue_len >= 100))
    simulation = Simulation(config, data.draw(guessers(config)))
    for index in range(data.draw(st.integers(1, 12))):
        simulation.add(data.draw(requests(config, index)))
    simulation.run_to_end(depth)
    stats = simulation.scheduler.stats()
    assert stats.generation_tokens_total == sum(len(result.tokens) for result in simulation.results.values())
    assert stats.prompt_tokens_total == sum(
        len(result.request.prompt_token_ids) for result in simulation.results.values()
    )
    assert stats.steps_total == len(simulation.plans)
