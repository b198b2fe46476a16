"""``silu_and_mul``: the gated activation of SwiGLU (Shazeer, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """[..., 2 * d] to [..., d]: silu of the first half times the second half. May overwrite x."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)
