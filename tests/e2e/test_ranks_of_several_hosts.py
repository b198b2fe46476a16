"""Ranks that talk as those of several hosts do, all on this one: over TCP, and meeting at a store."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import psutil
import pytest
import torch.distributed as dist

from parhelion import LLM
from parhelion.distributed.interfaces import loopback
from parhelion.engine.ranks import tensor_parallel
from parhelion.engine.ranks.messages import RankOptions
from parhelion.engine.ranks.processes import RankProcesses
from parhelion.engine.ranks.start import LocalHosts, StartedRank
from parhelion.errors import EngineDeadError
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of
from tests.processes import wait_for_end


class Hosts(LocalHosts):
    """Reach each other through the loopback interface."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.interface = loopback()

    def start(self, options: RankOptions) -> StartedRank:
        assert options.server_key
        return super().start(msgspec.structs.replace(options, interface=loopback()))


@pytest.fixture(autouse=True)
def _several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "rank_hosts", Hosts)


def running(word: str) -> list[psutil.Process]:
    """Children of this process that have a word in their command."""
    return [child for child in psutil.Process().children() if any(word in each for each in child.cmdline())]


def store_and_ranks(num_others: int = 1) -> list[psutil.Process]:
    stores, ranks = running("parhelion.distributed.store_server"), running("parhelion.engine.ranks.process")
    assert (len(stores), len(ranks)) == (1, num_others)
    return [*stores, *ranks]


def test_two_ranks_in_each_of_two_stages_say_what_one_says_and_listen_on_the_named_interface_alone(
    make_llm: Callable[..., LLM], alone: list[Tokens]
) -> None:
    llm = make_llm(tp=2, pp=2)
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    processes = store_and_ranks(3)
    sockets = [each for process in [psutil.Process(), *processes] for each in process.net_connections("tcp")]
    assert {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    llm.shutdown()
    wait_for_end(processes, 5)


@pytest.mark.parametrize(("victim", "name"), [(0, "the store of the ranks"), (1, "rank 1")])
def test_who_ends_while_they_meet_is_not_waited_for(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch, victim: int, name: str
) -> None:
    join, left = RankProcesses.join, list[psutil.Process]()

    def kill_one(self: RankProcesses) -> dist.Store:
        left.extend(store_and_ranks())
        left[1].suspend()
        store = join(self)
        left[victim].kill()
        return store

    monkeypatch.setattr(RankProcesses, "join", kill_one)
    with pytest.raises(EngineDeadError, match=rf"{name} on {os.uname().nodename} .* was killed by SIGKILL"):
        make_llm(tp=2)
    wait_for_end(left, 5)


def test_once_they_have_met_the_store_may_end(make_llm: Callable[..., LLM], alone: list[Tokens]) -> None:
    llm = make_llm(tp=2)
    store, _ = store_and_ranks()
    store.kill()
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
