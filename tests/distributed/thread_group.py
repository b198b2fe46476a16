"""Ranks that are threads of this process, and what they tell each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeVar

import torch

from parhelion.distributed.group import Group

T = TypeVar("T")


@dataclass
class _Table:
    """Where ranks lay what they tell."""

    parts: list[torch.Tensor | None]
    barrier: threading.Barrier


@dataclass(frozen=True)
class ThreadGroup(Group):
    """Attributes:
    told: bytes of each of this rank's messages.
    """

    table: _Table = field(kw_only=True)
    told: list[int] = field(default_factory=list)

    def gather_columns(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._exchange(part), dim=1)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(reduce(torch.add, self._exchange(values.clone())))

    def _exchange(self, part: torch.Tensor) -> list[torch.Tensor]:
        self.told.append(part.numel() * part.itemsize)
        self.table.parts[self.rank] = part
        self.table.barrier.wait(60)
        parts = [each for each in self.table.parts if each is not None]
        self.table.barrier.wait(60)
        return parts


def on_ranks(size: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    """What each of so many ranks makes of its place in the group."""
    table = _Table([None] * size, threading.Barrier(size))
    found: dict[int, T] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = work(ThreadGroup(rank, size, table=table))
        except BaseException:
            table.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == size, "a rank failed"
    return [found[rank] for rank in range(size)]
