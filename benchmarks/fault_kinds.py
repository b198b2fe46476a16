"""Which process of a server is ended, how, and what is promised then."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
from fault_leftovers import ENGINE, RANK, running

TP, PP, DP, RAY = ("--tp", "2"), ("--pp", "2"), ("--dp", "2"), ("--executor", "ray")
SOON = ("--step-timeout-s", "5")

HANG = signal.SIGUSR2
"""Lets a process go on without proceeding, see ``hanging/sitecustomize.py``."""


@dataclass(frozen=True)
class Kind:
    """One kind of round.

    Attributes:
        name: of the kind.
        who: is ended, for readers.
        options: of the server.
        victim: ``front``, ``engine``, ``rank`` or ``actor`` (the parent of a rank).
        then: what is promised: the server ``ends``, ``is dead`` and says so, or ``recovers``.
        rounds: how many there are of it.
        signal: that ends it, stops it, or lets it hang.
    """

    name: str
    who: str
    options: tuple[str, ...]
    victim: Literal["front", "engine", "rank", "actor"]
    then: Literal["ends", "is dead", "recovers"]
    rounds: int
    signal: signal.Signals = signal.SIGKILL

    @property
    def needs_ray(self) -> bool:
        """Its ranks are in a Ray cluster."""
        return "ray" in self.options

    @property
    def what_happens(self) -> str:
        """To the process, for readers."""
        return "hangs" if self.signal == HANG else self.signal.name

    @property
    def outcomes(self) -> frozenset[str]:
        """What a client that asks for a stream may get."""
        return frozenset({"200", "connection closed"} if self.then == "ends" else {"200", "503", "error in stream"})

    @property
    def outcomes_in_one_piece(self) -> frozenset[str]:
        """What one may get that asks for an answer in one piece: where another replica serves, the answer."""
        if self.then == "recovers" and "--dp" in self.options:
            return frozenset({"200"})
        return self.outcomes - {"error in stream"}

    def choose(self, processes: Sequence[psutil.Process], front: int) -> psutil.Process:
        """Who is ended.

        Args:
            processes: all of the server.
            front: process id of its first.
        """
        if self.victim == "front":
            return psutil.Process(front)
        if self.victim == "engine":
            return running(ENGINE, processes)[0]
        rank = running(RANK, processes)[0]
        if self.victim == "rank":
            return rank
        actor = rank.parent()
        assert actor is not None
        return actor


KINDS = (
    Kind("front", "the server's own process", (), "front", "ends", 6),
    Kind("front-tp", "the server's own process", TP, "front", "ends", 4),
    Kind("engine", "the engine", (), "engine", "is dead", 6),
    Kind("engine-tp", "the engine, which is rank 0", TP, "engine", "is dead", 4),
    Kind("rank", "the other rank", TP, "rank", "is dead", 6),
    Kind("stage", "the second stage", PP, "rank", "is dead", 6),
    Kind("replica", "a replica", DP, "engine", "recovers", 8),
    Kind("replica-rank", "a rank of a replica", (*DP, *TP), "rank", "recovers", 4),
    Kind("actor", "a Ray actor", (*TP, *RAY), "actor", "recovers", 6),
    Kind("ray-engine", "the engine, which is rank 0", (*TP, *RAY), "engine", "recovers", 3),
    Kind("ray-rank", "a rank in a Ray cluster", (*TP, *RAY), "rank", "recovers", 3),
    Kind("stopped-engine", "the engine", (), "engine", "is dead", 3, signal.SIGSTOP),
    Kind("stopped-rank", "the other rank", TP, "rank", "is dead", 4, signal.SIGSTOP),
    Kind("stopped-stage", "the second stage", PP, "rank", "is dead", 4, signal.SIGSTOP),
    Kind("stopped-replica", "a replica", DP, "engine", "recovers", 4, signal.SIGSTOP),
    Kind("stopped-replica-rank", "a rank of a replica", (*DP, *TP), "rank", "recovers", 2, signal.SIGSTOP),
    Kind("stopped-ray-rank", "a rank in a Ray cluster", (*TP, *RAY), "rank", "recovers", 3, signal.SIGSTOP),
    Kind("hung-engine", "the engine", SOON, "engine", "is dead", 2, HANG),
    Kind("hung-rank", "the other rank", (*TP, *SOON), "rank", "is dead", 3, HANG),
    Kind("hung-stage", "the second stage", (*PP, *SOON), "rank", "is dead", 3, HANG),
    Kind("hung-replica", "a replica", (*DP, *SOON), "engine", "recovers", 3, HANG),
    Kind("hung-replica-rank", "a rank of a replica", (*DP, *TP, *SOON), "rank", "recovers", 2, HANG),
    Kind("hung-ray-rank", "a rank in a Ray cluster", (*TP, *RAY, *SOON), "rank", "recovers", 2, HANG),
)
"""In the order in which they run."""


def kinds_named(names: Sequence[str]) -> list[Kind]:
    """The kinds of these names."""
    known = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise SystemExit(f"faults: there is no kind {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names]
