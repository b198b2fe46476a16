"""``rotary_embedding`` (Su et al., 2021), in the half-rotation form of GPT-NeoX and Llama checkpoints."""

from __future__ import annotations

import torch


def rotary_embedding(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each head by its token's angle, in place.

    Args:
        x: [num_tokens, num_heads, head_dim], queries or keys (or both, stacked along the heads).
        cos: [num_tokens, 1, head_dim], the two halves alike.
        sin: the same, with the first half negated.

    Returns:
        x.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return x.mul_(cos).addcmul_(swapped, sin)
