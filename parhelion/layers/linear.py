"""Linear layers: parameters packed by a provider at load."""

from __future__ import annotations

import torch

from parhelion.ops.linear import Provider


class Linear:
    """y = x @ weight.T + bias.

    Args:
        weight: [out_features, in_features]; not kept, the provider packs a copy.
        bias: [out_features] or None.
        provider: who computes it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, provider: Provider) -> None:
        self.out_features, self.in_features = weight.shape
        self._launch = provider.pack(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to [num_tokens, out_features]."""
        return self._launch(x)
