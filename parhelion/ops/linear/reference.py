"""The oracle of ``linear``: x @ weight.T + bias, in float32."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[M, K] by [N, K] to [M, N] float32, whatever the inputs' dtypes."""
    y = x.float() @ weight.float().t()
    return y if bias is None else y + bias.float()
