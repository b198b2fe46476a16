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

_PAUSE_S = 2e-4

_TURNS = 512
"""Of a graph that hands over: some milliseconds of them."""

_GRAPHS = 200
"""That are under way when NCCL is told to end: a second of them."""


class Releaser:
    """Made while all is well and no graph is captured, since what is first used, or allocated, may wait for the device.

    Ending NCCL may wait for the device as well, and let nobody launch anything meanwhile: so what kernels wait for is
    handed over by graphs, of which many are launched before.

    Args:
        device: of this rank.
        group: the ranks.
    """

    def __init__(self, device: torch.device, group: Group) -> None:
        self._group = group
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._words = torch.zeros(MOST_ROWS, dtype=torch.int64, device=device)
        rehearsed = torch.zeros(PLACES * group.size * MOST_ROWS, dtype=torch.int64, device=device)
        self._hand_over(Inboxes.of((rehearsed,) * group.size, group.rank, 1))
        if self._stream is not None:
            self._stream.synchronize()

    def prepare(self) -> None:
        """Record what hands over: all inboxes are made, and all is well."""
        if self._stream is None:
            return
        for each in _kept():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                for _ in range(_TURNS):
                    self._hand_over(each)
            self._graphs.append(graph)

    def give_up(self) -> None:
        """Let everything end that is under way, with meaningless results. What begins later waits again."""
        # They are not forgotten before nothing waits in them any more.
        kept = _kept()
        self._launch(_GRAPHS)
        abort()
        deadline = time.monotonic() + RELEASE_S
        while time.monotonic() < deadline:
            if self._stream is None:
                for each in kept:
                    self._hand_over(each)
            elif self._stream.query():
                self._launch(1)
            time.sleep(_PAUSE_S)

    def _launch(self, count: int) -> None:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for _ in range(count):
                for graph in self._graphs:
                    graph.replay()

    def _hand_over(self, to: Inboxes) -> None:
        """The next turn of every row, from all ranks."""
        # As the inboxes were made.
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            self._words.copy_(to.turns)
            self._words.add_(1).bitwise_left_shift_(32)
            own = to.of_ranks[self._group.rank]
            own.view(PLACES, self._group.size, MOST_ROWS, -1).copy_(self._words[:, None])


def _kept() -> list[Inboxes]:
    return [each for each in inboxes._kept.values() if isinstance(each, Inboxes)]
