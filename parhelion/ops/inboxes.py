"""On the host, the memory through which ranks exchange rows inside kernels (see ``exchange``): made once, and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

MOST_RANKS = 8
"""GPUs that reach each other's memory: those of one machine."""

MOST_ROWS = 64
"""Rows that are exchanged inside a kernel, at most: with more the bytes count, and NCCL moves them better."""

PLACES = 2
"""Places of a row that take turns."""


@dataclass(frozen=True)
class Inboxes:
    """Attributes:
    addresses: [ranks + 1] int64: in every rank's inbox, from where this rank writes on; then this rank's whole inbox,
        int64 [PLACES, ranks, MOST_ROWS, row_words].
    turns: how often each row has been exchanged, [MOST_ROWS] int32; wraps around.
    of_ranks: the inboxes, so that they stay.
    """

    addresses: torch.Tensor
    turns: torch.Tensor
    of_ranks: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, inboxes: tuple[torch.Tensor, ...], rank: int, row_words: int) -> Inboxes:
        """As a rank sees them.

        Args:
            inboxes: of all ranks, flat, zeros, as this rank reaches them.
        """
        own = inboxes[rank]
        first = rank * MOST_ROWS * row_words * own.itemsize
        of_ranks = [each.data_ptr() + first for each in inboxes]
        addresses = torch.tensor([*of_ranks, own.data_ptr()], dtype=torch.int64, device=own.device)
        return cls(addresses, torch.zeros(MOST_ROWS, dtype=torch.int32, device=own.device), inboxes)


_kept: dict[tuple[torch.device, int, int], Inboxes | str] = {}


def inboxes(device: torch.device, num_ranks: int, row_words: int) -> Inboxes | str:
    """The inboxes for rows of so many words, or why there are none.

    Every rank must call it, with the same arguments. On a CPU, where programs are built and interpreted, all of them
    are this process's own.
    """
    key = (device, num_ranks, row_words)
    if key not in _kept:
        _kept[key] = _made(device, num_ranks, row_words)
    return _kept[key]


def forget_inboxes() -> None:
    """Let go of all inboxes: whoever leaves a group has no peers any more."""
    _kept.clear()


def _made(device: torch.device, num_ranks: int, row_words: int) -> Inboxes | str:
    if num_ranks > MOST_RANKS:
        return f"{num_ranks} ranks do not reach each other's memory, {MOST_RANKS} at most do"
    size = PLACES * num_ranks * MOST_ROWS * row_words
    if device.type != "cuda" or num_ranks == 1:
        return Inboxes.of(
            tuple(torch.zeros(size, dtype=torch.int64, device=device) for _ in range(num_ranks)), 0, row_words
        )
    found: Inboxes | str
    try:
        found = Inboxes.of(_shared(size, device, num_ranks), dist.get_rank(), row_words)
    except (RuntimeError, AttributeError, ImportError) as error:
        found = f"symmetric memory cannot be had on rank {dist.get_rank()} of {os.uname().nodename}: {error}"
    # One rank without it is enough for all to do without.
    works = torch.tensor([isinstance(found, Inboxes)], dtype=torch.int32, device=device)
    dist.all_reduce(works, dist.ReduceOp.MIN)
    if not works.item() and isinstance(found, Inboxes):
        return "another rank has no symmetric memory"
    return found


def _shared(size: int, device: torch.device, num_ranks: int) -> tuple[torch.Tensor, ...]:
    """Symmetric memory of all ranks, zeros.

    Source: torch.distributed's symmetric memory (``torch.distributed._symmetric_memory``), without multicast.
    """
    import torch.distributed._symmetric_memory as symmetric

    own = symmetric.empty(size, dtype=torch.int64, device=device)
    own.zero_()
    torch.cuda.synchronize(device)
    handle = symmetric.rendezvous(own, dist.group.WORLD)
    handle.barrier()
    torch.cuda.synchronize(device)
    return tuple(handle.get_buffer(rank, (size,), torch.int64) for rank in range(num_ranks))
