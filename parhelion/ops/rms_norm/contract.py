"""``rms_norm`` (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide


@dataclass(frozen=True)
class RmsNorm(Contract):
    """Each row divided by the root mean square of its elements, times a weight.

    Inputs: x [M, hidden_size], weight [hidden_size], both of ``dtype``.
    Output: y [M, hidden_size] of ``dtype``.
    """

    hidden_size: int
    epsilon: float = 1e-6
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "rms_norm"
    # Half a step of bfloat16 is 2^-9 of the value; over many elements the norm of the error is about half of that.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3),)
    num_weights: ClassVar[int] = 1

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (
            randn((num_tokens, self.hidden_size), self.dtype, device, generator),
            randn((self.hidden_size,), self.dtype, device, generator),
        )

    def reference(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rounded(normalized(wide(x), wide(weight), self.epsilon), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        return Traffic((2 * elements + self.hidden_size) * self.dtype.itemsize, 4 * elements)


def normalized(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The norm's formula, in the dtype of x [..., hidden]; shared by every contract that has a norm in it."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight
