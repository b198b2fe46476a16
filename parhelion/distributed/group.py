"""The ranks that share each layer: which of them this process is, and what they do together.

The ranks are those of torch's default process group, which ``rendezvous.join`` makes: NCCL on GPUs, gloo on CPUs. Every
rank must make the same calls in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from parhelion.quantization import Section


@dataclass(frozen=True)
class Group:
    """Attributes:
    rank: of this process.
    size: how many there are; with one nothing is communicated.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_alone(self) -> bool:
        """There are no others."""
        return self.size == 1

    def section(self, dim: int, total: int) -> Section:
        """This rank's share of ``total`` elements along a dimension; ``size`` must divide them."""
        return Section(dim, total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def heads(self, dim: int, num_heads: int, head_dim: int) -> Section:
        """This rank's share of stacked heads. With fewer heads than ranks, a head is held by several."""
        kept = max(1, num_heads // self.size)
        first = num_heads * self.rank // self.size
        return Section(dim, first * head_dim, (first + kept) * head_dim)

    def gather_columns(self, part: torch.Tensor) -> torch.Tensor:
        """[n, k] of every rank, side by side: [n, size * k] on all of them."""
        if self.is_alone:
            return part
        rows, columns = part.shape
        parts = part.new_empty(self.size * rows, columns)
        # Its name in newer versions of torch, and in older ones.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(parts, part.contiguous())
        return parts.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, written to ``values`` on all of them."""
        if not self.is_alone:
            dist.all_reduce(values)
        return values

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        """What rank 0 has, written to ``values`` on all ranks."""
        if not self.is_alone:
            dist.broadcast(values, 0)
        return values


ALONE = Group()
"""A process that has every layer to itself."""
