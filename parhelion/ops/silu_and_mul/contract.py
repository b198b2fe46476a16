"""``silu_and_mul``: the gated activation of SwiGLU (Shazeer, 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide


@dataclass(frozen=True)
class SiluAndMul(Contract):
    """silu of the first half of a row (the gate) times the second half.

    Input: x [M, 2 * intermediate_size] of ``dtype``.
    Output: y [M, intermediate_size] of ``dtype``.
    """

    intermediate_size: int
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "silu_and_mul"
    # Half a step of bfloat16, twice in ATen, which rounds silu's result before it multiplies.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=6e-3),)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, 2 * self.intermediate_size), self.dtype, device, generator),)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        return rounded(gated(wide(x)), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.intermediate_size
        return Traffic(3 * elements * self.dtype.itemsize, 5 * elements)


def gated(x: torch.Tensor) -> torch.Tensor:
    """The activation's formula, in the dtype of x [..., 2 * d]; shared by every contract that has it in it."""
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
