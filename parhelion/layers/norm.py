"""Normalization layers."""

from __future__ import annotations

import torch

from parhelion.ops.rms_norm import fused_add_rms_norm, rms_norm


class RMSNorm:
    """Root-mean-square normalization with a learned weight [hidden]."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight = weight
        self.epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        return rms_norm(x, self.weight, self.epsilon)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add x to the residual in place and return the normed sum."""
        return fused_add_rms_norm(x, residual, self.weight, self.epsilon)[0]
