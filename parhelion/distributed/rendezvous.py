"""How the ranks of one host find each other: a store that only this host can reach, and torch's process group.

Everything listens on the loopback interface: the store on a socket of its own, gloo's and NCCL's on the interface that
their environment variables name.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from parhelion.config import environment_variables
from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.stages import StageLinks
from parhelion.errors import ConfigError
from parhelion.ops.inboxes import forget_inboxes

LOOPBACK = "127.0.0.1"

JOIN_TIMEOUT = timedelta(seconds=120)
"""How long ranks wait for each other at the start."""

CALL_TIMEOUT = timedelta(seconds=600)
"""How long a rank waits in a collective for ranks that live but do not answer. With gloo one that ended is noticed at
once; NCCL does not notice, and knows no limit in graphs that are replayed.
"""

LEAVE_TIMEOUT_S = 10.0
"""How long leaving may take on GPUs."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands among all ranks of an engine.

    Attributes:
        stage: number of its stage.
        group: the ranks that share the stage's layers.
        links: to the stages before and behind; None if there is one stage.
    """

    stage: int = 0
    group: Group = ALONE
    links: StageLinks | None = None


def host_store(num_ranks: int) -> dist.TCPStore:
    """Rank 0's end of the store, on a free port of the loopback interface; it does not wait for the others.

    Raises:
        ConfigError: this process is in a group already.
    """
    if dist.is_initialized():
        raise ConfigError(
            "this process already has an engine of several ranks, and torch has one group a process: shut that down "
            "first, or start the other one in a process of its own"
        )
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(
        LOOPBACK,
        port,
        num_ranks,
        is_master=True,
        timeout=JOIN_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def reach_store(port: int, num_ranks: int) -> dist.TCPStore:
    """Another rank's end of the store."""
    return dist.TCPStore(LOOPBACK, port, num_ranks, is_master=False, timeout=JOIN_TIMEOUT)


def join(store: dist.Store, rank: int, num_ranks: int, device: torch.device) -> Group:
    """Make this process a rank of the group; returns once all of them are there.

    Args:
        store: that all of them reach.
        rank: of this process.
        num_ranks: in all.
        device: that this rank computes on.
    """
    on_gpu = device.type != "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    interface = _loopback_interface()
    with environment_variables({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}):
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=CALL_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        if on_gpu:
            # What NCCL sets up at its first collective shall fail here, and take its memory before it is measured.
            dist.all_reduce(torch.zeros(1, device=device))
            torch.cuda.synchronize(device)
    return Group(rank, num_ranks)


def take_place(store: dist.TCPStore, rank: int, tp: int, pp: int, device: torch.device) -> Place:
    """Make this process a rank of an engine; returns once all ranks are there.

    Args:
        store: that all of them reach.
        rank: of this process: ``tp`` ranks of the first stage, then those of the next.
        tp: ranks that share each layer.
        pp: stages.
        device: that this rank computes on.
    """
    stage, number = divmod(rank, tp)
    if pp == 1:
        return Place(stage, join(store, rank, tp, device))
    group = join(dist.PrefixStore(f"stage {stage}", store), number, tp, device) if tp > 1 else ALONE
    interface = _loopback_interface()
    with environment_variables({"GLOO_SOCKET_IFNAME": interface}):
        # A group beside torch's default one, which is that of the stage: what the layers do together stays as it is.
        roads = dist.ProcessGroupGloo(dist.PrefixStore(f"stages {number}", store), stage, pp, CALL_TIMEOUT)
    return Place(stage, group, StageLinks(roads))


def leave() -> None:
    """Leave the group, if this process is in one; collectives under way elsewhere fail. On GPUs those under way here
    end as well, with meaningless results.
    """
    forget_inboxes()
    if not dist.is_initialized():
        return
    if dist.get_backend() != "nccl":
        dist.destroy_process_group()
        return
    # NCCL destroys a group together with all ranks, of which some may have ended, so it is aborted.
    abort().join(LEAVE_TIMEOUT_S)


def abort() -> threading.Thread:
    """End the collectives of NCCL that are under way here. The thread that sees to it ends when the group is left,
    which waits for graphs that captured collectives.
    """
    aborting = threading.Thread(target=_abort, daemon=True)
    aborting.start()
    return aborting


def _abort() -> None:
    try:
        if dist.is_initialized() and dist.get_backend() == "nccl":
            dist.distributed_c10d._abort_process_group()
    except (AssertionError, ValueError):
        # Another thread has done it.
        return


def _loopback_interface() -> str:
    """Its name, such as ``lo``."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == LOOPBACK for address in addresses):
            return name
    raise ConfigError(f"no network interface has the address {LOOPBACK}, which ranks of one host talk through")
