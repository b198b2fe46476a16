"""What serves ``all_reduce_rms_norm``, where the process is one of as many ranks as it sums over."""

from __future__ import annotations

import torch
import torch.distributed as dist

from parhelion.ops.all_reduce_rms_norm.contract import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce.providers import why_not_ranks
from parhelion.ops.collectives.machines import why_not_first_group, why_not_one_machine
from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import BaseProvider


class HelionAllReduceRmsNorm(HelionProvider):
    """The tile program, over symmetric memory where there is some and rows are few, and else behind NCCL."""

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, AllReduceRmsNorm)
        # On several machines a wait inside the program would have no end.
        return why_not_ranks(contract.num_ranks) or why_not_one_machine() or why_not_first_group()


class TorchDistributedAndNorm(BaseProvider):
    """``torch.distributed.all_reduce``, then torch's operators."""

    name = "torch"

    def why_not(self, device: torch.device) -> str | None:
        return None if dist.is_available() else "this build of torch has no torch.distributed"

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, AllReduceRmsNorm)
        return why_not_ranks(contract.num_ranks)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, AllReduceRmsNorm)
        alone = AllReduceRmsNorm(contract.hidden_size, 1, contract.epsilon, contract.dtype, contract.quant_dtype)

        def launch(hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
            if contract.num_ranks > 1:
                dist.all_reduce(hidden)
            *normed, total = alone.reference(hidden, residual, weight)
            return (*normed, residual.copy_(total))

        return launch
