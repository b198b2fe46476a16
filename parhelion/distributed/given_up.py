"""Ends what a device waits for when another rank has ended: NCCL's collectives, and kernels that wait in an inbox."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from parhelion.distributed.group import Group
from parhelion.distributed.rendezvous import abort
from parhelion.ops import inboxes
from parhelion.ops.inboxes import MOST_ROWS, PLACES, Inboxes

RELEASE_S = 2.0
"""How long kernels are handed what they wait for: several steps may be under way, each with many of them."""

_PAUSE_S = 1e-4


class Releaser:
    """Hands over by copies alone, which need no processor: those may all be taken by programs that have been started
    ahead and wait for the ones that wait here.

    Made while all is well and no graph is captured, since what is first used, or allocated, may wait for the device.

    Args:
        device: of this rank.
        group: the ranks.
    """

    def __init__(self, device: torch.device, group: Group) -> None:
        self._group = group
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._turns = torch.zeros(MOST_ROWS, dtype=torch.int32, pin_memory=self._stream is not None)
        self._words: dict[int, torch.Tensor] = {}
        size = PLACES * group.size * MOST_ROWS
        rehearsed = Inboxes.of(
            (torch.zeros(size, dtype=torch.int64, device=device),) * group.size, group.rank, row_words=1
        )
        self._hand_over(rehearsed, self._room_for(size))

    def prepare(self) -> None:
        """All inboxes are made, and all is well."""
        for each in _kept():
            self._words[id(each)] = self._room_for(each.of_ranks[0].numel())

    def give_up(self) -> None:
        """Let everything end that is under way, with meaningless results. What begins later waits again."""
        abort()
        deadline = time.monotonic() + RELEASE_S
        while time.monotonic() < deadline:
            for each in _kept():
                if id(each) not in self._words:
                    self._words[id(each)] = torch.zeros(each.of_ranks[0].numel(), dtype=torch.int64)
                self._hand_over(each, self._words[id(each)])
            time.sleep(_PAUSE_S)

    def _room_for(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int64, pin_memory=self._stream is not None)

    def _hand_over(self, to: Inboxes, words: torch.Tensor) -> None:
        """The next turn of every row, from all ranks."""
        # As the inboxes were made.
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            self._turns.copy_(to.turns, non_blocking=True)
            self._wait()
            turns = (self._turns + 1).to(torch.int64) << 32
            words.view(PLACES, self._group.size, MOST_ROWS, -1).copy_(turns[:, None])
            to.of_ranks[self._group.rank].copy_(words, non_blocking=True)
            self._wait()

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _kept() -> list[Inboxes]:
    return [each for each in inboxes._kept.values() if isinstance(each, Inboxes)]
