"""Whether ranks can share memory, as they have told each other through the store of their group."""

from __future__ import annotations

import torch
import torch.distributed as dist

from parhelion.ops.inboxes import Inboxes, inboxes

_GROUP_KEY = "groups of rank 0 before"


def tell_machine(rank: int, address: str) -> None:
    """Say, as one of a group, where this rank is.

    Args:
        rank: of this process.
        address: at which the other ranks reach its machine.
    """
    dist.distributed_c10d._get_default_store().set(_key(rank), address)


def why_not_one_machine() -> str | None:
    """None if the ranks are on one machine, or nobody has said where they are; else why they cannot share memory."""
    if not dist.is_initialized():
        return None
    store = dist.distributed_c10d._get_default_store()
    keys = [_key(rank) for rank in range(dist.get_world_size())]
    if not store.check(keys[:1]):
        return None
    # Every rank tells it as it joins, and this waits for those that have not yet.
    machines = len({store.get(key) for key in keys})
    return None if machines == 1 else f"its ranks are on {machines} machines, and share no memory"


def tell_group(number: int) -> None:
    """Say, as the first of a group, how many groups this process was in before."""
    dist.distributed_c10d._get_default_store().set(_GROUP_KEY, str(number))


def why_not_first_group() -> str | None:
    """None if the group is its first rank's process's first one; else why its ranks cannot share memory.

    Torch counts, for good, how often a process has shared memory, and looks for its peers by that number: those of a
    later group are new processes, which begin to count.

    Source: ``StoreExchange`` in torch's ``CUDASymmetricMemoryUtils.hpp``, of which a process has one.
    """
    if not dist.is_initialized():
        return None
    store = dist.distributed_c10d._get_default_store()
    if not store.check([_GROUP_KEY]) or store.get(_GROUP_KEY) == b"0":
        return None
    return (
        "rank 0's process had an engine of several ranks before, and torch shares memory with the first one's alone: "
        "start this one in a process of its own"
    )


def why_no_exchange(device: torch.device, num_ranks: int, hidden_size: int) -> str | None:
    """None if the ranks can hand each other rows inside kernels, for which all is prepared then; else why not.

    Every rank must call it, with the same sizes.

    Args:
        device: of this rank.
        num_ranks: that share the layers.
        hidden_size: elements of a row, of 16 bits each.
    """
    why_not = why_not_one_machine() or why_not_first_group()
    if why_not is not None:
        return why_not
    found = inboxes(device, num_ranks, hidden_size // 2)
    return None if isinstance(found, Inboxes) else found


def _key(rank: int) -> str:
    return f"machine of rank {rank}"
