"""``argmax``: the likeliest token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn


@dataclass(frozen=True)
class Argmax(Contract):
    """The position of each row's largest element: of equal ones the first; a NaN counts as larger than anything.

    Input: logits [M, vocab_size] of ``dtype``.
    Output: ids [M] int64.
    """

    vocab_size: int
    dtype: torch.dtype = torch.float32

    name: ClassVar[str] = "argmax"
    outputs: ClassVar[tuple[Output, ...]] = (Output("ids", relative=0.0),)
    instead: ClassVar[str] = "torch"

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, self.vocab_size), self.dtype, device, generator),)

    def reference(self, logits: torch.Tensor) -> torch.Tensor:
        # torch.argmax does not promise which of equal elements it finds.
        largest = logits.amax(-1, keepdim=True)
        is_largest = (logits == largest) | logits.isnan()
        positions = torch.arange(logits.shape[-1], device=logits.device)
        return torch.where(is_largest, positions, logits.shape[-1]).amin(-1)

    def traffic(self, num_tokens: int) -> Traffic:
        """A comparison counts as one operation."""
        elements = num_tokens * self.vocab_size
        return Traffic(elements * self.dtype.itemsize + 8 * num_tokens, elements)
