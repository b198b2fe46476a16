"""Ranks meet also after an attempt that failed, and who waits for a silent one waits no longer once its connections are
ended here.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parhelion.distributed.rendezvous import (
    abort_connections,
    host_store,
    leave,
    open_connections,
    reach_store,
    take_place,
)

CPU = torch.device("cpu")


def join_and_stay_silent(port: int, ended: Path) -> None:
    """Rank 1."""
    take_place(reach_store(port, 2), 1, 2, 1, CPU)
    while not ended.exists():
        time.sleep(0.05)


def test_a_collective_ends_with_its_connections_while_the_other_rank_lives(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    store = host_store(2)
    other = multiprocessing.get_context("spawn").Process(target=join_and_stay_silent, args=(store.port, ended))
    other.start()
    # Somebody still waits for a rank that has ended.
    threading.Thread(target=take_place, args=(host_store(2), 0, 2, 1, CPU), daemon=True).start()
    try:
        time.sleep(0.2)
        before = open_connections()
        assert take_place(store, 0, 2, 1, CPU).group.size == 2
        opened = open_connections() - before
        assert opened
        aborting = threading.Timer(0.5, abort_connections, [opened])
        aborting.start()
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.zeros(1))
        assert other.is_alive()
        aborting.join()
    finally:
        ended.touch()
        leave()
        other.join(20)
        other.kill()
