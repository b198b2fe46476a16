"""Replicas as ``LLM`` drives them, behind a connection whose messages a test writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from parhelion.config import EngineConfig
from parhelion.engine.messages import (
    AbortRequests,
    EngineFailed,
    FromEngine,
    GetStats,
    LoadProgress,
    Outputs,
    ReplicaStates,
    RequestRejected,
    RequestsLost,
    StatsReply,
    ToEngine,
    TokenOutput,
)
from parhelion.engine.replicas import core as replica_core
from parhelion.engine.replicas.core import ReplicaCore
from parhelion.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestsLostError
from parhelion.types import EngineStats

from .requests import add_request, engine_info

TOKENS = [TokenOutput("a/0", 5)]


class Script:
    """Says what it was given, and answers questions for counts at once."""

    def __init__(self, *messages: FromEngine) -> None:
        self._said: asyncio.Queue[FromEngine] = asyncio.Queue()
        for message in messages:
            self._said.put_nowait(message)
        self.sent: list[ToEngine] = []
        self.num_closed = 0

    def send(self, message: ToEngine) -> None:
        self.sent.append(message)
        if isinstance(message, GetStats):
            self._said.put_nowait(StatsReply(message.number, EngineStats(num_running=3)))

    async def receive(self) -> FromEngine:
        return await self._said.get()

    async def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """What the replicas say from their start on; in the end they are closed, once."""
    made = Script(*request.param)
    monkeypatch.setattr(replica_core, "connect", lambda *_: made)
    yield made
    assert made.num_closed == 1


def open_core() -> ReplicaCore:
    return ReplicaCore(EngineConfig(model="any", dp=2), Path("any"), "any")


@pytest.mark.parametrize(
    "script",
    [
        (
            LoadProgress(1, 2),
            engine_info(vocab_size=77),
            ReplicaStates([]),
            Outputs(TOKENS),
            RequestsLost(["a/0"], "killed", True),
            RequestRejected("b/0", False, "too long", "prompt"),
            EngineFailed("EngineDeadError", "all are given up"),
        )
    ],
    indirect=True,
)
def test_what_replicas_say_becomes_tokens_and_errors(script: Script) -> None:
    core = open_core()
    assert core.info.vocab_size == 77
    assert core.step() == []
    assert core.step() == TOKENS
    with pytest.raises(RequestsLostError, match="killed") as lost:
        core.step()
    assert (lost.value.request_ids, lost.value.others_serve) == (["a/0"], True)
    with pytest.raises(InvalidRequestError, match="too long") as refused:
        core.step()
    assert refused.value.param == "prompt"
    for ask in (core.step, core.step, core.stats):
        with pytest.raises(EngineDeadError, match="all are given up: start it again"):
            ask()
    core.close()


@pytest.mark.parametrize("script", [(engine_info(),)], indirect=True)
def test_requests_reach_the_replicas_and_counts_come_back_until_it_is_closed(script: Script) -> None:
    core = open_core()
    request = add_request("a/0")
    core.add(request)
    assert core.abort("a/0")
    assert core.stats() == EngineStats(num_running=3)
    assert script.sent == [request, AbortRequests(["a/0"]), GetStats(0)]
    with pytest.raises(ConfigError, match="take dp 1"):
        core.check_integrity()
    core.close()
    assert not core.abort("b/0"), "late, and harmless"
    with pytest.raises(EngineDeadError, match="shut down"):
        core.stats()


@pytest.mark.parametrize("script", [(EngineFailed("ConfigError", "replica 0: no such device"),)], indirect=True)
def test_a_start_that_fails_ends_what_was_started(script: Script) -> None:
    with pytest.raises(ConfigError, match=r"^replica 0: no such device$"):
        open_core()
    assert script.num_closed == 1
