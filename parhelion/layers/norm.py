"""Normalization layers."""

from __future__ import annotations

import torch

from parhelion.ops.elementwise import ElementwiseOps


class RMSNorm:
    """Root-mean-square normalization with a learned weight [hidden].

    Args:
        weight: [hidden] float32.
        epsilon: added to the mean square.
        ops: who computes it.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float, ops: ElementwiseOps) -> None:
        self.weight = weight
        self.epsilon = epsilon
        self._ops = ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        return self._ops.rms_norm(x, self.weight, self.epsilon)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add x to the residual in place and return the normed sum."""
        return self._ops.fused_add_rms_norm(x, residual, self.weight, self.epsilon)[0]
