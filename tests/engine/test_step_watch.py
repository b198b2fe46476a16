"""Which steps are late, and what becomes of the engine then."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from parhelion.config import EngineConfig
from parhelion.engine import step_watch
from parhelion.engine.core import EngineCore
from parhelion.engine.step_watch import StepWatch, step_timeout
from parhelion.errors import EngineDeadError
from parhelion.scheduler import SchedulerConfig

from .noop import NoOpExecutor
from .requests import add_request

LATE_S = 0.2
ENOUGH_S = 10.0
"""For what comes soon on any machine."""


class Others:
    """Other ranks.

    Attributes:
        given_up: what this rank waits for has been ended.
        abandoned: they have been ended without this rank's doing.
    """

    names = ("rank 1 on there (process 7)",)

    def __init__(self) -> None:
        self.why: EngineDeadError | None = None
        self.given_up = threading.Event()
        self.abandoned = threading.Event()

    def give_up(self, why: EngineDeadError) -> None:
        self.why = why
        self.given_up.set()

    def abandon(self) -> None:
        self.abandoned.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_watch, "CHECK_S", 0.02)
    monkeypatch.setattr(step_watch, "GRACE_S", 0.2)


def test_what_the_core_waits_for_in_vain_is_given_up_and_the_reason_names_all_ranks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    others, executor = Others(), NoOpExecutor()

    def hang_in_the_third(plan: object) -> None:
        if len(executor.plans) == 2:
            assert others.given_up.wait(ENOUGH_S)
            raise others.why or AssertionError

    executor.before = hang_in_the_third
    limits = SchedulerConfig(num_blocks=8, block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=32)
    core = EngineCore(limits, executor, watch=StepWatch(LATE_S, others))
    core.add(add_request("r/0", range(2, 6), max_tokens=9))
    core.step()
    core.step()
    with caplog.at_level(logging.ERROR), pytest.raises(EngineDeadError) as raised:
        core.step()
    core.close()
    said = r"^no step has ended for 0.2 s: one of these runs and does not proceed: rank 0 on .* \(process \d+\), "
    raised.match(said + r"rank 1 on there \(process 7\)$")
    assert "hang_in_the_third" in caplog.text, "where the threads were"
    assert not others.abandoned.wait(0.5), "it has ended by itself"


def test_an_engine_that_does_not_come_back_is_ended_by_force_with_its_ranks() -> None:
    others, forced = Others(), list[str]()
    watch = StepWatch(LATE_S, others)
    watch.end_by(forced.append)
    with watch:
        assert others.abandoned.wait(ENOUGH_S)
    deadline = time.monotonic() + ENOUGH_S
    while not forced and time.monotonic() < deadline:
        time.sleep(0.01)
    assert others.given_up.is_set()
    assert forced == [str(others.why)]


def test_steps_that_end_are_not_late_however_many_there_are_nor_is_an_engine_without_work() -> None:
    others = Others()
    watch = StepWatch(LATE_S, others)
    for _ in range(8):
        with watch:
            assert not others.given_up.wait(LATE_S / 4)
    assert not others.given_up.wait(2 * LATE_S)
    watch.close()


def test_time_in_which_the_whole_process_was_stopped_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.02, 500.0, 1000.0])
    others, looked = Others(), threading.Event()

    def clock() -> float:
        try:
            return next(times)
        except StopIteration:
            looked.set()
            return 1000.0

    monkeypatch.setattr(step_watch.time, "monotonic", clock)
    watch = StepWatch(LATE_S, others)
    with watch:
        assert looked.wait(ENOUGH_S)
        assert not others.given_up.is_set()
    watch.close()


def test_the_limit_is_the_one_asked_for_or_the_devices() -> None:
    def limit(asked: float | None, is_quick: bool) -> float:
        return step_timeout(EngineConfig(model="any", step_timeout_s=asked), is_quick)

    assert [limit(None, True), limit(None, False), limit(0, True), limit(7, True)] == [120, 600, 0, 7]
