"""How ranks find each other: a store, and torch's process group.

Ranks of one host meet in a file that only their user can reach, those of several hosts at a store that hears who knows
its secret. Gloo's and NCCL's sockets are on one network interface, the loopback's on one host.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from parhelion.config import environment_variables
from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.interfaces import Interface, loopback
from parhelion.distributed.secret_store import SecretStore
from parhelion.distributed.stages import Road, StageLinks
from parhelion.distributed.store_messages import StorePlace
from parhelion.errors import ConfigError
from parhelion.ops.collectives.machines import tell_group, tell_machine
from parhelion.ops.inboxes import forget_inboxes

JOIN_TIMEOUT = timedelta(seconds=120)
"""How long ranks wait for each other at the start."""

CALL_TIMEOUT = timedelta(seconds=600)
"""How long a rank waits in a collective for ranks that live but do not answer. With gloo one that ended is noticed at
once, unless its host is cut off; NCCL does not notice, and knows no limit in graphs that are replayed.
"""

_groups = itertools.count()
"""Groups that this process was rank 0 of, on GPUs. The other ranks' processes are in one group only."""

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


def check_no_group() -> None:
    """See that this process can be rank 0 of a group.

    Raises:
        ConfigError: it is in a group already.
    """
    if dist.is_initialized():
        raise ConfigError(
            "this process already has an engine of several ranks, and torch has one group a process: shut that down "
            "first, or start the other one in a process of its own"
        )


def file_store(path: str, num_ranks: int) -> dist.FileStore:
    """Every rank's end of the store of one host.

    Args:
        path: where it shall be, in a folder that nobody else can enter.
        num_ranks: in all; the last one that leaves removes it.
    """
    store = dist.FileStore(path, num_ranks)
    store.set_timeout(JOIN_TIMEOUT)
    return store


def reach_store(place: StorePlace, rank: int) -> SecretStore:
    """A rank's end of the store of several hosts.

    Args:
        place: of the store.
        rank: of this process.
    """
    return SecretStore(place, rank, JOIN_TIMEOUT)


def join(
    store: dist.Store, rank: int, num_ranks: int, device: torch.device, interface: Interface | None = None
) -> Group:
    """Make this process a rank of the group; returns once all of them are there.

    Args:
        store: that all of them reach, to be kept until the group has been left.
        rank: of this process.
        num_ranks: in all.
        device: that this rank computes on.
        interface: of this host, through which the ranks talk; None is the loopback's.
    """
    on_gpu = device.type != "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    # Torch names the group by it, and all ranks must name it alike; but here an attempt that failed may have counted.
    dist.distributed_c10d._world.group_count = 0
    with _through(interface):
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
            if rank == 0:
                tell_group(next(_groups))
            # Until then nobody asks for it.
            dist.barrier()
    if interface is not None:
        tell_machine(rank, interface.address)
    return Group(rank, num_ranks)


def _through(interface: Interface | None) -> AbstractContextManager[None]:
    """Whom gloo and NCCL set up meanwhile, they reach through this interface."""
    name = (interface or loopback()).name
    # NCCL takes a name for a prefix of names, unless told otherwise.
    variables = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    if interface is not None:
        # Else a thread of torch's asks the store every second whether a collective has failed anywhere. It would need
        # Python's lock for that, also while a group is ended by whoever has the lock.
        variables["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
    return environment_variables(variables)


def take_place(
    store: dist.Store, rank: int, tp: int, pp: int, device: torch.device, interface: Interface | None = None
) -> Place:
    """Make this process a rank of an engine; returns once all ranks are there.

    Args:
        store: see ``join``.
        rank: of this process: ``tp`` ranks of the first stage, then those of the next.
        tp: ranks that share each layer.
        pp: stages.
        device: that this rank computes on.
        interface: see ``join``.
    """
    stage, number = divmod(rank, tp)
    if pp == 1:
        return Place(stage, join(store, rank, tp, device, interface))
    group = join(dist.PrefixStore(f"stage {stage}", store), number, tp, device, interface) if tp > 1 else ALONE
    with _through(interface):
        # A group beside torch's default one, which is that of the stage: what the layers do together stays as it is.
        links = StageLinks(_roads(store, stage, range(number, tp * pp, tp), device), device)
        if device.type != "cpu":
            torch.cuda.set_device(device)
            # What NCCL sets up at the first transfer shall fail here, and take its memory before it is measured.
            links.meet()
    return Place(stage, group, links)


def _roads(store: dist.Store, stage: int, ranks: range, device: torch.device) -> Road:
    """A group of the ranks with the same place in every stage."""
    name = f"stages {ranks.start}"
    own = dist.PrefixStore(name, store)
    if device.type == "cpu":
        roads: Road = dist.ProcessGroupGloo(own, stage, len(ranks), CALL_TIMEOUT)
        return roads
    nccl = dist.distributed_c10d.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout, options.global_ranks_in_group, options.group_name = CALL_TIMEOUT, list(ranks), name
    roads = nccl(own, stage, len(ranks), options)
    return roads


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


def open_connections() -> frozenset[int]:
    """File descriptors of this process's TCP connections."""
    return frozenset(
        each.fd for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
    )


def abort_connections(connections: frozenset[int]) -> None:
    """Let gloo's collectives under way here fail, since a rank that they wait for is known to be gone: gloo gives up
    only when it sees its connections end.

    Args:
        connections: those that were opened while the group was joined.
    """
    for descriptor in connections & open_connections():
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
