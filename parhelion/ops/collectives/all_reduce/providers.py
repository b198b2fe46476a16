"""What ``torch.distributed`` offers for ``all_reduce``: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist

from parhelion.ops.collectives.all_reduce.contract import AllReduce
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider


class TorchDistributed(BaseProvider):
    """``torch.distributed.all_reduce`` over the default process group, in place."""

    name = "torch"

    def why_not(self, device: torch.device) -> str | None:
        return None if dist.is_available() else "this build of torch has no torch.distributed"

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, AllReduce)
        return why_not_ranks(contract.num_ranks)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, AllReduce)
        return _leave if contract.num_ranks == 1 else _sum


def why_not_ranks(num_ranks: int) -> str | None:
    """None if the process is in a group of so many ranks; else why it cannot compute with them."""
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found == num_ranks:
        return None
    return f"it sums over {num_ranks} ranks, and this process is in a group of {found}"


def _leave(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _sum(hidden: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(hidden)
    return hidden
