"""The steps of a rank's own process, and where it finds models."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.messages import AddRequest, EngineFailed
from parhelion.engine.ranks.awaited_tokens import AwaitedTokens
from parhelion.engine.ranks.channel import RankChannel, Relay
from parhelion.engine.ranks.messages import ExecuteStep, Hello, Leave, Loaded, RankOptions, Sampled, StepDone, ToRank
from parhelion.engine.ranks.port import RankPort
from parhelion.engine.ranks.process import path_here, run_steps
from parhelion.engine.step_result import NOTHING, StepResult
from parhelion.errors import ModelNotFoundError
from parhelion.scheduler import AWAITED, DRAFTED, KNOWN, Row, StepPlan


class Ended(Exception):
    """Rank 0 has no more steps."""


class Steps:
    """Rank 0's steps, and a worker whose device computes on its own; what happens is noted."""

    def __init__(self, follows: Iterable[bool]) -> None:
        self.events: list[str] = []
        self._plans = [StepPlan(step, (), (), (), each) for step, each in enumerate(follows)]

    def receive(self) -> ExecuteStep:
        if not self._plans:
            raise Ended
        return ExecuteStep(self._plans.pop(0), ())

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> UnderWay:
        self.events.append(f"begin {plan.step}")
        return UnderWay(self.events, plan.step)


class UnderWay:
    def __init__(self, events: list[str], step: int) -> None:
        self._events, self._step = events, step

    def wait(self) -> StepResult:
        end = f"end {self._step}"
        if end not in self._events:
            self._events.append(end)
        return NOTHING


def events(*follows: bool) -> list[str]:
    steps: Any = Steps(follows)
    with pytest.raises(Ended):
        run_steps(steps, steps, answers=False)
    found: list[str] = steps.events
    return found


@pytest.mark.parametrize("follows", [False, True])
def test_a_step_is_waited_for_while_the_next_one_runs(follows: bool) -> None:
    """With guesses too: the worker itself waits for what it must know of them."""
    assert events(*[follows] * 3) == ["begin 0", "begin 1", "end 0", "begin 2", "end 1"]


def test_a_step_waits_for_tokens_and_others_wait_behind_it() -> None:
    def row(token: int) -> Row:
        return Row("a", 0, 5, 1, True, 2, (), token)

    plans = [
        StepPlan(0, (Row("a", 0, 4, 1, True, 1),), (), ()),
        StepPlan(1, (row(AWAITED),), (), (), awaits=0),
        StepPlan(2, (row(9),), (), ()),
    ]
    messages: list[ToRank] = [*(ExecuteStep(plan, ()) for plan in plans), Sampled(0, (8,)), Sampled(1, (9,))]
    executed: list[StepPlan] = []

    class Told:
        def receive(self) -> ToRank:
            if not messages:
                raise Ended
            return messages.pop(0)

        def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
            executed.append(plan)
            # Two steps are told before it is known what the first has sampled.
            assert len(messages) == (4 if plan.step == 0 else 1)
            return NOTHING

    told: Any = Told()
    with pytest.raises(Ended):
        run_steps(told, told, answers=False, awaited=AwaitedTokens(2))
    assert [plan.rows[0].first_token for plan in executed] == [KNOWN, 8, 9]


class Awaited:
    """A worker whose steps end at once, though it takes until an event to hand over any but the first. One fails."""

    def __init__(self, first_told: threading.Event, failing: int) -> None:
        self._first_told, self._failing = first_told, failing

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> Ending:
        assert plan.step == 0 or self._first_told.wait(10)
        return Ending(plan.step == self._failing)


class Ending:
    def __init__(self, fails: bool) -> None:
        self._fails = fails

    def wait(self) -> StepResult:
        if self._fails:
            raise RuntimeError("the device is gone")
        return NOTHING


def test_rank_0_is_told_of_a_step_while_the_next_one_is_handed_over() -> None:
    port, told = RankPort(), threading.Event()
    options = msgspec.structs.replace(options_of(""), address=port.address, life_address=port.life_address(1))
    channel = RankChannel(options)
    channel.send(Hello(1, port.secret, "here"))
    assert port.receive(5.0) == (1, Hello(1, port.secret, "here"))
    for step in range(3):
        port.send(ExecuteStep(StepPlan(step, (), (), ()), ()))

    def serve() -> None:
        with Relay(channel, torch.device("cpu")) as relay:
            run_steps(relay, Awaited(told, failing=2), answers=True)

    serving = ThreadPoolExecutor(1).submit(serve)
    try:
        assert port.receive(5.0) == (1, StepDone(0, NOTHING))
        told.set()
        assert port.receive(5.0) == (1, StepDone(1, NOTHING))
        assert port.receive(5.0) == (1, EngineFailed("RuntimeError", "the device is gone"))
        port.send(Leave())
        assert isinstance(serving.exception(5.0), Exception)
        channel.send(Loaded(1, 1))
        assert port.receive(5.0) == (1, Loaded(1, 1)), "the channel is this thread's again"
    finally:
        channel.close()
        port.close()


def options_of(server_key: str) -> RankOptions:
    config = EngineConfig(model="any", tp=2)
    return RankOptions(config, "/models/any", 1, "tcp://127.0.0.1:1", "secret", 0, server_key)


def test_another_machine_finds_a_model_where_rank_0_has_it_or_by_its_name(tmp_path: Path) -> None:
    theirs, named = tmp_path / "theirs", tmp_path / "named"
    named.mkdir()
    (named / "config.json").write_text("{}")
    assert path_here(options_of("key"), str(theirs), str(named)) == named
    assert path_here(options_of(""), str(theirs), str(named)) == theirs
    with pytest.raises(ModelNotFoundError, match=r"every machine needs the model, and .*theirs is not on this one"):
        path_here(options_of("key"), str(theirs), str(tmp_path / "nowhere"))
    theirs.mkdir()
    assert path_here(options_of("key"), str(theirs), str(named)) == theirs


def test_other_ranks_are_told_what_was_not_known_when_a_step_was_planned() -> None:
    rows = (Row("a", 0, 9, 3, True, 4, (DRAFTED, DRAFTED), unchecked=3), Row("b", 1, 5, 1, True, 1))
    step = ExecuteStep(StepPlan(7, rows, (), (), follows=True, num_in_flight=1), ())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=ToRank) == step
