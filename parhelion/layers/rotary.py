"""Tables of the rotary position embedding."""

from __future__ import annotations

import torch


class RotaryTables:
    """Cosines and sines by position, computed once.

    Args:
        inverse_frequencies: [head_dim / 2] float32, radians per position.
        max_position: positions to cover.
        dtype: of the tables.

    Attributes:
        cos: [max_position, 1, head_dim], both halves alike.
        sin: the same, the first half negated, so that rotating is ``x * cos + swap_halves(x) * sin``.
    """

    def __init__(self, inverse_frequencies: torch.Tensor, max_position: int, dtype: torch.dtype) -> None:
        angles = torch.outer(torch.arange(max_position).float(), inverse_frequencies)
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.cat((cos, cos), dim=-1)[:, None, :].to(dtype)
        self.sin = torch.cat((-sin, sin), dim=-1)[:, None, :].to(dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows for positions [num_tokens] int64: cos and sin, each [num_tokens, 1, head_dim]."""
        return self.cos[positions], self.sin[positions]
