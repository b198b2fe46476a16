"""Ranks meet in a file, or at a store that hears who knows its secret; also after an attempt that failed. And who waits
for a silent rank waits no longer once its connections are ended here.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parhelion.distributed.interfaces import loopback
from parhelion.distributed.rendezvous import (
    abort_connections,
    file_store,
    leave,
    open_connections,
    reach_store,
    take_place,
)
from parhelion.distributed.store_messages import StorePlace
from parhelion.distributed.store_process import StoreProcess

CPU = torch.device("cpu")


def join_and_stay_silent(path: str, ended: Path) -> None:
    """Rank 1."""
    take_place(file_store(path, 2), 1, 2, 1, CPU)
    while not ended.exists():
        time.sleep(0.05)


def test_a_collective_ends_with_its_connections_while_the_other_rank_lives(tmp_path: Path) -> None:
    ended, path = tmp_path / "ended", str(tmp_path / "store")
    other = multiprocessing.get_context("spawn").Process(target=join_and_stay_silent, args=(path, ended))
    other.start()
    # Somebody still waits for a rank that has ended.
    nowhere = file_store(str(tmp_path / "nowhere"), 2)
    threading.Thread(target=take_place, args=(nowhere, 0, 2, 1, CPU), daemon=True).start()
    try:
        time.sleep(0.2)
        before = open_connections()
        assert take_place(file_store(path, 2), 0, 2, 1, CPU).group.size == 2
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


def sum_and_hand_over(place: StorePlace, rank: int) -> list[float]:
    """What a rank has of a sum, and then as one of two stages."""
    store = reach_store(place, rank)
    take_place(store, rank, 2, 1, CPU, loopback())
    values = torch.tensor([1.0, 10.0]) * (rank + 1)
    dist.all_reduce(values)
    leave()
    links = take_place(store, rank, 1, 2, CPU, loopback()).links
    assert links is not None
    if rank == 0:
        links.send(values)
        # The other one has it all.
        store.get("done")
    else:
        values = links.receive((2,), torch.float32)
        store.set("done", b"")
    store.close()
    return values.tolist()


def be_the_other(place: StorePlace, told: Path) -> None:
    """Rank 1."""
    told.write_text(repr(sum_and_hand_over(place, 1)))


def test_ranks_of_several_hosts_sum_and_hand_over_once_they_have_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gloo connects when it first sends, so that a thread asks the store of which Python knows nothing.
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "1")
    process, told = StoreProcess(loopback()), tmp_path / "told"
    place = process.place()
    other = multiprocessing.get_context("spawn").Process(target=be_the_other, args=(place, told))
    other.start()
    try:
        assert sum_and_hand_over(place, 0) == [3.0, 30.0]
        other.join(60)
        assert told.read_text() == "[3.0, 30.0]"
    finally:
        leave()
        other.kill()
        process.close()
