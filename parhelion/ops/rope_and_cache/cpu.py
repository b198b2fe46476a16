"""``rope_and_cache`` and ``fused_qk_norm_rope`` by chains of ATen kernels, for CPUs."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Launcher


class Rotations:
    """Cosines and sines of a step's tokens, looked up once a step and not once a layer.

    A step hands the same ``positions`` tensor to every layer, which is what tells it from the next.
    """

    def __init__(self) -> None:
        self._positions: torch.Tensor | None = None
        self._cos = self._sin = torch.empty(0)

    def at(
        self, cos_sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each [num_tokens, 1, head_dim], the sine's first half negated: the rotation of x is then
        ``x * cos + swap_halves(x) * sin``.
        """
        if positions is not self._positions:
            cos, sin = cos_sin[positions][:, None].to(dtype).chunk(2, -1)
            self._cos, self._sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
            self._positions = positions
        return self._cos, self._sin


def rotate_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads [num_tokens, num_heads, head_dim] in place (Su et al., 2021; half-rotation form)."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return heads.mul_(cos).addcmul_(swapped, sin)


def rope_and_cache_launcher(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Launcher:
    """A launcher of ``rope_and_cache`` that rotates within qkv, which it may overwrite. No padding slots."""
    rotations = Rotations()
    rotated = num_heads + num_kv_heads

    def launch(
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        rotate_(heads[:, :rotated], *rotations.at(cos_sin, positions, dtype))
        kv_cache.view(-1, *kv_cache.shape[2:]).index_copy_(0, slot_mapping, heads[:, num_heads:])
        return qkv[:, : num_heads * head_dim], kv_cache

    return launch
