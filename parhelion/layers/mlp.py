"""The gated feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.layers.linear import Linear
from parhelion.ops.elementwise import ElementwiseOps


@dataclass(frozen=True)
class GatedMLP:
    """SwiGLU (Shazeer, 2020).

    Attributes:
        gate_up: hidden to 2 * intermediate, the gate first.
        down: intermediate to hidden.
        ops: who computes the activation.
    """

    gate_up: Linear
    down: Linear
    ops: ElementwiseOps

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] to the same."""
        return self.down(self.ops.silu_and_mul(self.gate_up(hidden)))
