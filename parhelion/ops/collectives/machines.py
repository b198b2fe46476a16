"""Whether ranks can share memory, as they have told each other through the store of their group."""

from __future__ import annotations

import torch.distributed as dist

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


def _key(rank: int) -> str:
    return f"machine of rank {rank}"
