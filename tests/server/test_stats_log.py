"""The line in the server's log that tells what the engine did."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest

from parhelion.errors import EngineDeadError
from parhelion.server.stats_log import describe_interval, log_stats
from parhelion.types import EngineStats

from .conftest import live_server
from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
IDLE = EngineStats(num_blocks=100)


class ScriptedEngine(FakeEngine):
    """Answers with one record after another, raises the errors among them, and is dead behind the last."""

    def __init__(self, script: Sequence[EngineStats | EngineDeadError]) -> None:
        super().__init__()
        self._script = list(script)

    async def stats(self) -> EngineStats:
        if self.is_dead:
            raise EngineDeadError("its process was killed by SIGKILL")
        answer = self._script.pop(0)
        self.is_dead = not self._script
        if isinstance(answer, EngineDeadError):
            raise answer
        return answer


async def lines_of(
    script: Sequence[EngineStats | EngineDeadError], caplog: pytest.LogCaptureFixture, seconds_apart: float = 10.0
) -> list[str]:
    """What is logged of such an engine, whose answers come so many seconds apart, before its death."""
    caplog.set_level(logging.INFO, "parhelion.server")
    ticks = itertools.count(100.0, seconds_apart)
    await log_stats(ScriptedEngine(script), interval_s=0, clock=lambda: next(ticks))
    *lines, death = [record for record in caplog.records if record.name == "parhelion.server"]
    assert death.levelno == logging.ERROR
    assert "its process was killed by SIGKILL" in death.getMessage()
    return [record.getMessage() for record in lines]


async def test_a_line_tells_what_an_operator_wants_of_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    before = replace(
        IDLE,
        preemptions_total=3,
        prompt_tokens_total=1000,
        generation_tokens_total=5000,
        prefix_cache_queried_tokens_total=1000,
        prefix_cache_hit_tokens_total=1000,
        guessed_tokens_total=100,
        accepted_tokens_total=100,
        checked_rows_total=20,
    )
    after = replace(
        before,
        num_running=3,
        num_waiting=2,
        num_blocks_in_use=25,
        preemptions_total=5,
        prompt_tokens_total=1400,
        generation_tokens_total=5240,
        prefix_cache_queried_tokens_total=1400,
        prefix_cache_hit_tokens_total=1100,
        guessed_tokens_total=300,
        accepted_tokens_total=190,
        checked_rows_total=80,
        speculation_gain=1.254,
    )
    assert await lines_of([before, after], caplog, seconds_apart=20.0) == [
        "3 running, 2 waiting; 20.0 prompt tokens/s, 12.0 generated tokens/s; 25.0% of KV blocks in use; "
        "25.0% of prompt tokens cached; 2 preemptions; "
        "45.0% of guesses accepted, mean accepted length 2.50, gain 1.25x"
    ]


async def test_what_was_not_done_in_the_interval_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    before = replace(
        IDLE,
        prefix_cache_queried_tokens_total=9,
        guessed_tokens_total=100,
        accepted_tokens_total=50,
        checked_rows_total=20,
        speculation_gain=1.5,
    )
    after = replace(before, num_running=1, generation_tokens_total=50)
    assert await lines_of([before, after], caplog) == [
        "1 running, 0 waiting; 0.0 prompt tokens/s, 5.0 generated tokens/s; 0.0% of KV blocks in use; 0 preemptions"
    ]


async def test_an_idle_engine_is_silent_after_one_last_line(caplog: pytest.LogCaptureFixture) -> None:
    working = replace(IDLE, num_running=1, generation_tokens_total=20)
    ended = replace(IDLE, generation_tokens_total=30)
    script = [IDLE, IDLE, IDLE, working, ended, ended, ended, ended]
    rates = [line.split("; ")[0] + line.split(",")[2] for line in await lines_of(script, caplog)]
    assert rates == [
        "1 running, 0 waiting 2.0 generated tokens/s; 0.0% of KV blocks in use; 0 preemptions",
        "0 running, 0 waiting 1.0 generated tokens/s; 0.0% of KV blocks in use; 0 preemptions",
        "0 running, 0 waiting 0.0 generated tokens/s; 0.0% of KV blocks in use; 0 preemptions",
    ]


async def test_requests_that_get_nowhere_are_still_told_of(caplog: pytest.LogCaptureFixture) -> None:
    stuck = replace(IDLE, num_waiting=4)
    assert [line[:22] for line in await lines_of([stuck] * 3, caplog)] == ["0 running, 4 waiting; "] * 2


async def test_an_engine_that_does_not_answer_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    script = [IDLE, EngineDeadError("no answer for 30 s"), replace(IDLE, generation_tokens_total=80)]
    (line,) = await lines_of(script, caplog, seconds_apart=40.0)
    assert " 2.0 generated tokens/s" in line


async def test_an_engine_that_dies_ends_the_log_with_what_ended_it(caplog: pytest.LogCaptureFixture) -> None:
    assert await lines_of([IDLE, EngineDeadError("it died")], caplog) == []
    engine = FakeEngine()
    engine.is_dead = True
    await asyncio.wait_for(log_stats(engine), 30)


async def test_a_server_logs_and_ends_even_if_its_engine_died(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "parhelion.server")
    monkeypatch.setattr("parhelion.server.run.log_stats", lambda engine: log_stats(engine, interval_s=0.01))
    engine = FakeEngine()
    with live_server(engine) as server:
        async with httpx.AsyncClient() as client:
            await client.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 5})
        deadline = time.monotonic() + 30
        while "0 running, 0 waiting" not in caplog.text:
            assert time.monotonic() < deadline, "nothing was logged within half a minute"
            await asyncio.sleep(0.005)
        engine.die(EngineDeadError("the engine died"))


def test_an_interval_is_the_growth_of_totals_and_the_present_of_the_rest() -> None:
    before = EngineStats(num_running=5, steps_total=10, accepted_tokens_total=4, speculation_gain=2.0)
    now = EngineStats(num_running=1, steps_total=17, accepted_tokens_total=4, speculation_gain=1.5, num_graphs=3)
    assert now.since(before) == EngineStats(num_running=1, steps_total=7, speculation_gain=1.5, num_graphs=3)


def test_an_engine_without_blocks_and_an_interval_without_length_divide_by_nothing() -> None:
    assert EngineStats().kv_cache_usage == 0.0
    assert describe_interval(EngineStats(generation_tokens_total=3), 0.0).startswith("0 running, 0 waiting; 0.0 prompt")
