"""``all_reduce``: the sum over the ranks of what each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide


@dataclass(frozen=True)
class AllReduce(Contract):
    """The sum over all ranks, on every rank. Every rank of torch's default process group must call it.

    Input: hidden [M, hidden_size] of ``dtype``, this rank's part of the sum; may be written to.
    Output: hidden [M, hidden_size] of ``dtype``, the same on all ranks.
    """

    hidden_size: int
    num_ranks: int
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "all_reduce"
    # Partial sums may be rounded to bfloat16 on their way around the ranks.
    outputs: ClassVar[tuple[Output, ...]] = (Output("hidden", relative=8e-3),)
    mutated: ClassVar[tuple[int, ...]] = (0,)
    instead: ClassVar[str] = "torch"

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, self.hidden_size), self.dtype, device, generator),)

    def reference(self, hidden: torch.Tensor) -> torch.Tensor:
        """All parts are gathered, added in the order of the ranks, and rounded once."""
        if self.num_ranks == 1:
            return hidden.clone()
        parts = [torch.empty_like(hidden) for _ in range(self.num_ranks)]
        dist.all_gather(parts, hidden.contiguous())
        return rounded(sum((wide(part) for part in parts[1:]), wide(parts[0])), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        """Of this rank's memory: what the links take is the planner's (``parhelion.distributed.collectives``)."""
        elements = num_tokens * self.hidden_size
        return Traffic(2 * elements * self.dtype.itemsize, elements * (self.num_ranks - 1))
