"""How ranks find each other: a store that rank 0 keeps, and torch's process group.

Everything listens on one network interface, the loopback's where all ranks are on one host: the store on a socket of
its own, gloo's and NCCL's on the interface that their environment variables name.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from parhelion.config import environment_variables
from parhelion.distributed.group import Group
from parhelion.distributed.interfaces import LOOPBACK, Interface, loopback
from parhelion.errors import ConfigError

JOIN_TIMEOUT = timedelta(seconds=120)
"""How long ranks wait for each other at the start."""

CALL_TIMEOUT = timedelta(seconds=600)
"""How long a rank waits in a collective for ranks that live but do not answer. One that ended is noticed at once."""


def host_store(num_ranks: int, interface: Interface | None = None) -> dist.TCPStore:
    """Rank 0's end of the store, on a free port; it does not wait for the others.

    Args:
        num_ranks: in all.
        interface: where it listens; None is the loopback's.

    Raises:
        ConfigError: this process is in a group already.
    """
    if dist.is_initialized():
        raise ConfigError(
            "this process already has an engine of several ranks, and torch has one group a process: shut that down "
            "first, or start the other one in a process of its own"
        )
    address = interface.address if interface is not None else LOOPBACK
    listener = socket.socket()
    listener.bind((address, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(
        address,
        port,
        num_ranks,
        is_master=True,
        timeout=JOIN_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def reach_store(port: int, num_ranks: int, address: str = LOOPBACK) -> dist.TCPStore:
    """Another rank's end of the store."""
    return dist.TCPStore(address, port, num_ranks, is_master=False, timeout=JOIN_TIMEOUT)


def join(
    store: dist.TCPStore, rank: int, num_ranks: int, device: torch.device, interface: Interface | None = None
) -> Group:
    """Make this process a rank of the group; returns once all of them are there.

    Args:
        store: that all of them reach.
        rank: of this process.
        num_ranks: in all.
        device: that this rank computes on.
        interface: of this host, through which the ranks talk; None is the loopback's.
    """
    on_gpu = device.type != "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    name = (interface or loopback()).name
    # NCCL takes a name for a prefix of names, unless told otherwise.
    with environment_variables({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}):
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=CALL_TIMEOUT,
            device_id=device if on_gpu else None,
        )
    return Group(rank, num_ranks)


def leave() -> None:
    """Leave the group, if this process is in one; collectives under way elsewhere fail."""
    if dist.is_initialized():
        dist.destroy_process_group()


def open_connections() -> frozenset[int]:
    """File descriptors of this process's TCP connections."""
    return frozenset(
        each.fd for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
    )


def abort(connections: frozenset[int]) -> None:
    """Let this process's collectives under way fail, since a rank that they wait for is known to be gone.

    NCCL has a call for that. gloo's leaves its threads waiting: it gives up only when it sees its connections end.

    Args:
        connections: those that were opened while the group was joined.
    """
    if not dist.is_initialized():
        return
    if dist.get_backend() != "gloo":
        dist.distributed_c10d._abort_process_group()
        return
    for descriptor in connections & open_connections():
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
