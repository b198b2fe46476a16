"""Norms and activations on tiles, in float32: what tile programs share. Quantization is in ``ops/quantize.py``.

Helion traces into these functions, so they cost a program nothing. It does not know ``[:, None]`` outside of a kernel's
own body: write ``unsqueeze``.
"""

from __future__ import annotations

import torch


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, in float32."""
    gate = gate.to(torch.float32)
    return gate * torch.sigmoid(gate) * up.to(torch.float32)


def added_rows(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual + x, rounded once, to the residual's dtype."""
    return (x.to(torch.float32) + residual.to(torch.float32)).to(residual.dtype)


def rms_normed(rows: torch.Tensor, weight: torch.Tensor, hidden_size: int, epsilon: float) -> torch.Tensor:
    """The norm of float32 rows [R, hidden_size], not rounded.

    The weight is of that shape too, expanded with a stride of 0: so its tile has the layout of the rows', and is not
    shuffled through shared memory.
    """
    factor = torch.rsqrt(torch.sum(rows * rows, dim=-1) / hidden_size + epsilon)
    return rows * factor.unsqueeze(-1) * weight.to(torch.float32)


def rms_normed_groups(rows: torch.Tensor, weight: torch.Tensor, hidden_size: int, epsilon: float) -> torch.Tensor:
    """The same of rows seen as groups [R, groups, group_size]."""
    factor = torch.rsqrt(torch.sum(torch.sum(rows * rows, dim=-1), dim=-1) / hidden_size + epsilon)
    return rows * factor.unsqueeze(-1).unsqueeze(-1) * weight.to(torch.float32)
