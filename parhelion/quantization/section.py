"""A stretch of a tensor along one dimension: what one rank of several keeps of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Section:
    """Elements ``start`` to ``stop`` along dimension ``dim``: 0 are rows (output features), 1 are columns (input
    features).
    """

    dim: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Elements along the dimension."""
        return self.stop - self.start

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is kept of a tensor of shape ``whole``."""
        return (*whole[: self.dim], self.size, *whole[self.dim + 1 :])

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a whole tensor, as a tensor of its own."""
        return tensor.narrow(self.dim, self.start, self.size).clone(memory_format=torch.contiguous_format)

    def in_blocks(self, block: int) -> Section:
        """The same stretch, counted in blocks of so many elements, the last of which may be partial."""
        return Section(self.dim, self.start // block, -(-self.stop // block))
