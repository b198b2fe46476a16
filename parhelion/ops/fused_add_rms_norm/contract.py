"""``fused_add_rms_norm``: the residual add before a norm, and the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.rms_norm.contract import normalized


@dataclass(frozen=True)
class FusedAddRmsNorm(Contract):
    """``residual + x``, and ``rms_norm`` of it as it is stored: rounded to its dtype.

    Inputs: x [M, hidden_size], residual [M, hidden_size], weight [hidden_size], all of ``dtype``.
    Outputs: y [M, hidden_size] and the new residual [M, hidden_size], both of ``dtype``; the latter in place.
    """

    hidden_size: int
    epsilon: float = 1e-6
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "fused_add_rms_norm"
    # Half a step of bfloat16, as in rms_norm.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3), Output("residual", relative=4e-3))
    mutated: ClassVar[tuple[int, ...]] = (1,)
    num_weights: ClassVar[int] = 1

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        shape = (num_tokens, self.hidden_size)
        return (
            randn(shape, self.dtype, device, generator),
            randn(shape, self.dtype, device, generator),
            randn((self.hidden_size,), self.dtype, device, generator),
        )

    def reference(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
        total = added(x, residual, self.dtype)
        return rounded(normalized(wide(total), wide(weight), self.epsilon), self.dtype), total

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        return Traffic((4 * elements + self.hidden_size) * self.dtype.itemsize, 5 * elements)


def added(x: torch.Tensor, residual: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The new residual, rounded once; shared by every contract that adds a residual."""
    return rounded(wide(x) + wide(residual), dtype)
