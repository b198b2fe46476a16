"""Runs the same work on several ranks, of which this process is the first: what it yields there is what is measured."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parhelion.distributed.group import Group
from parhelion.distributed.rendezvous import file_store, join, leave

Work = Callable[..., Iterator[dict[str, Any]]]
"""Given the group, the rank's device and further arguments; every rank must do the same. Module-level, to be found by
the other processes.
"""

END_S = 20.0
"""How long the other ranks may take to end."""


def on_ranks(work: Work, device: str, num_ranks: int, *arguments: Any) -> Iterator[dict[str, Any]]:
    """What the work yields on rank 0."""
    with tempfile.TemporaryDirectory(prefix="parhelion-ranks-") as folder:
        path = f"{folder}/store"
        spawn = multiprocessing.get_context("spawn")
        others = [
            spawn.Process(target=_other, args=(work, device, num_ranks, rank, path, arguments), daemon=True)
            for rank in range(1, num_ranks)
        ]
        for process in others:
            process.start()
        try:
            yield from _run(work, path, device, num_ranks, 0, arguments)
        finally:
            leave()
            for process in others:
                process.join(END_S)
                if process.is_alive():
                    process.kill()


def _other(work: Work, device: str, num_ranks: int, rank: int, path: str, arguments: tuple[Any, ...]) -> None:
    for _ in _run(work, path, device, num_ranks, rank, arguments):
        pass
    # The group is not left: NCCL would wait for rank 0.
    os._exit(0)


def _run(
    work: Work, path: str, device: str, num_ranks: int, rank: int, arguments: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    own = torch.device(device) if device == "cpu" else torch.device("cuda", rank)
    group = join(file_store(path, num_ranks), rank, num_ranks, own)
    with torch.inference_mode():
        yield from work(group, own, *arguments)


def gathered(value: float, group: Group, device: torch.device) -> list[float]:
    """A number of each rank, on all of them."""
    return list(group.gather_columns(torch.tensor([[value]], dtype=torch.float64, device=device))[0].tolist())
