"""``embedding``: rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn


@dataclass(frozen=True)
class Embedding(Contract):
    """The table's row of each token.

    Inputs: token_ids [M] int64, in [0, vocab_size); weight [vocab_size, hidden_size] of ``dtype``.
    Output: hidden [M, hidden_size] of ``dtype``.
    """

    vocab_size: int
    hidden_size: int
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "embedding"
    outputs: ClassVar[tuple[Output, ...]] = (Output("hidden", relative=0.0),)
    num_weights: ClassVar[int] = 1
    instead: ClassVar[str] = "torch"

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (
            torch.randint(self.vocab_size, (num_tokens,), generator=generator).to(device),
            randn((self.vocab_size, self.hidden_size), self.dtype, device, generator),
        )

    def reference(self, token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight[token_ids]

    def traffic(self, num_tokens: int) -> Traffic:
        """The tokens' rows are read and written once, however large the table."""
        return Traffic(num_tokens * (8 + 2 * self.hidden_size * self.dtype.itemsize), 0)
