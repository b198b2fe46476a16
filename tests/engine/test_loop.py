"""The engine loop between a scripted front end and a worker that computes nothing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import pytest

from parhelion.engine.core import EngineCore
from parhelion.engine.loop import failure, run_loop
from parhelion.engine.messages import (
    AbortRequests,
    EngineFailed,
    FromEngine,
    GetStats,
    Outputs,
    RequestRejected,
    Shutdown,
    StatsReply,
    ToEngine,
)
from parhelion.engine.step_result import StepResult

from .noop import NoOpExecutor, assert_empty, make_core, token_of
from .requests import add_request

Script = Sequence[ToEngine | None]


class ScriptedChannel:
    """A front end that has written all its messages beforehand and leaves once they are read and answered.

    Args:
        script: messages in order; None is a moment at which there is nothing to read.
    """

    def __init__(self, script: Script) -> None:
        self._script = deque(script)
        self.sent: list[FromEngine] = []
        self.blocked = 0

    def receive(self, block: bool, check: Callable[[], None]) -> ToEngine | None:
        self.blocked += block
        while block and self._script and self._script[0] is None:
            self._script.popleft()
        return self._script.popleft() if self._script else None

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)

    def tokens(self, request_id: str) -> list[int]:
        """All that came for one request."""
        batches = [message.tokens for message in self.sent if isinstance(message, Outputs)]
        return [token.token_id for batch in batches for token in batch if token.request_id == request_id]


def serve(script: Script, executor: NoOpExecutor | None = None, **limits: int) -> tuple[ScriptedChannel, EngineCore]:
    channel = ScriptedChannel(script)
    core = make_core(executor or NoOpExecutor(), **limits)
    run_loop(core, channel)
    return channel, core


def expected(request_id: str, count: int) -> list[int]:
    return [token_of(request_id, index) for index in range(count)]


def test_requests_are_served_to_their_end_and_the_loop_ends_with_the_front_end() -> None:
    channel, core = serve([add_request("a/0", max_tokens=5), None, None, add_request("b/0", max_tokens=3)])
    assert channel.tokens("a/0") == expected("a/0", 5)
    assert channel.tokens("b/0") == expected("b/0", 3)
    assert_empty(core)


def test_the_loop_waits_for_messages_only_when_there_is_no_work() -> None:
    channel, _ = serve([add_request("a/0", max_tokens=10), None, None, None, add_request("b/0", max_tokens=1)])
    assert channel.blocked == 2, "once before the first request, once after the last"


def test_no_message_is_sent_for_a_step_without_tokens() -> None:
    channel, _ = serve([add_request("a/0", range(2, 50), max_tokens=2)])
    assert channel.sent
    assert all(isinstance(message, Outputs) and message.tokens for message in channel.sent)
    assert len(channel.sent) == 2, "the two chunks that sample nothing are silent"


def test_all_waiting_messages_are_read_before_a_step() -> None:
    executor = NoOpExecutor()
    serve([add_request(f"r{index}/0", [index + 2], max_tokens=1) for index in range(4)], executor)
    assert [len(plan.rows) for plan in executor.plans] == [4]


def test_an_abort_ends_a_request_and_an_unknown_one_is_ignored() -> None:
    channel, core = serve(
        [
            add_request("gone/0", max_tokens=40),
            add_request("stays/0", [30, 31], max_tokens=6),
            None,
            AbortRequests(["gone/0", "nobody/0"]),
        ]
    )
    assert len(channel.tokens("gone/0")) == 1
    assert channel.tokens("stays/0") == expected("stays/0", 6)
    assert_empty(core)


def test_rejected_requests_are_told_why_and_the_others_go_on() -> None:
    channel, core = serve(
        [
            add_request("good/0", max_tokens=2),
            add_request("long/0", [5] * 64),
            add_request("also/0", [9], max_tokens=2),
            add_request("late/0"),
        ],
        max_queue_len=2,
    )
    rejected = {message.request_id: message for message in channel.sent if isinstance(message, RequestRejected)}
    assert set(rejected) == {"long/0", "late/0"}
    assert (rejected["long/0"].queue_full, rejected["long/0"].param) == (False, "prompt")
    assert "max_model_len" in rejected["long/0"].message
    assert (rejected["late/0"].queue_full, rejected["late/0"].param) == (True, None)
    assert "max_queue_len is 2" in rejected["late/0"].message
    assert channel.tokens("good/0") == expected("good/0", 2)
    assert channel.tokens("also/0") == expected("also/0", 2)
    assert_empty(core)


def test_stats_are_answered_under_their_number_idle_and_busy() -> None:
    channel, _ = serve([GetStats(7), add_request("a/0", max_tokens=5), None, GetStats(8), None, GetStats(9)])
    replies = {message.number: message.stats for message in channel.sent if isinstance(message, StatsReply)}
    assert set(replies) == {7, 8, 9}
    assert (replies[7].num_running, replies[7].steps_total) == (0, 0)
    assert (replies[8].num_running, replies[8].steps_total) == (1, 1)
    assert replies[9].generation_tokens_total == 2


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("worker")}


def test_shutdown_ends_the_loop_at_once_with_work_left_and_no_thread() -> None:
    before = worker_threads()
    executor = NoOpExecutor()
    channel, _ = serve(
        [add_request("a/0", max_tokens=40), None, None, Shutdown(), add_request("b/0"), GetStats(1)], executor
    )
    assert len(channel.tokens("a/0")) == 2
    assert not any(isinstance(message, StatsReply) for message in channel.sent)
    assert len(executor.plans) <= 3, "no step beyond the one that was planned ahead"
    assert worker_threads() <= before


def test_a_worker_that_fails_is_reported_last_and_the_loop_raises() -> None:
    before = worker_threads()
    executor = NoOpExecutor()
    executor.fail_at = 2
    channel = ScriptedChannel([add_request("a/0", max_tokens=40), None, None, None, None, GetStats(1)])
    with pytest.raises(RuntimeError, match="the device is gone"):
        run_loop(make_core(executor), channel)
    assert channel.sent[-1] == EngineFailed("RuntimeError", "the device is gone")
    assert channel.tokens("a/0") == expected("a/0", 2), "what was computed before it is not lost"
    assert worker_threads() <= before


class ForgetfulExecutor(NoOpExecutor):
    """Returns a token too few."""

    def execute(self, plan, admitted) -> StepResult:
        result = super().execute(plan, admitted)
        return StepResult(result.token_ids[:-1], result.logprobs[:-1], [])


def test_a_worker_that_breaks_its_contract_ends_the_engine_and_not_just_one_request() -> None:
    channel = ScriptedChannel([add_request("a/0")])
    with pytest.raises(ValueError, match="samples 1 tokens, and 0 ids came back"):
        run_loop(make_core(ForgetfulExecutor()), channel)
    assert isinstance(channel.sent[-1], EngineFailed)


def test_a_failure_is_one_short_line_even_of_an_error_without_a_message() -> None:
    assert failure(KeyError()) == EngineFailed("KeyError", "KeyError")
    assert failure(ValueError("first\nsecond")) == EngineFailed("ValueError", "first")
    assert len(failure(ValueError("x" * 10000)).message) == 500
