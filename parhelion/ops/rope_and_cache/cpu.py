"""``rope_and_cache`` and ``fused_qk_norm_rope`` by chains of ATen kernels, for CPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.contract import Launcher


@dataclass(frozen=True)
class Rotations:
    """The rotations of a step's tokens: that of x is ``x * cos + swap_halves(x) * sin``.

    Attributes:
        table: cos_sin that they were looked up in.
        cos, sin: [num_tokens, 1, head_dim], the sine's first half negated.
    """

    table: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def rotations_at(cos_sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotations:
    """The positions' rotations, looked up once a step and not once a layer.

    They are kept with the tensor: a step hands the same ``positions`` to every layer, and the next step has another.
    """
    kept: Rotations | None = getattr(positions, "_rotations", None)
    if kept is None or kept.table is not cos_sin or kept.cos.dtype != dtype:
        cos, sin = cos_sin[positions][:, None].to(dtype).chunk(2, -1)
        kept = Rotations(cos_sin, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
        positions._rotations = kept
    return kept


def rotate_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads [num_tokens, num_heads, head_dim] in place (Su et al., 2021; half-rotation form)."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return heads.mul_(cos).addcmul_(swapped, sin)


def rope_and_cache_launcher(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Launcher:
    """A launcher of ``rope_and_cache`` that rotates within qkv, which it may overwrite. No padding slots."""
    rotated = num_heads + num_kv_heads

    def launch(
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        at = rotations_at(cos_sin, positions, dtype)
        rotate_(heads[:, :rotated], at.cos, at.sin)
        kv_cache.view(-1, *kv_cache.shape[2:]).index_copy_(0, slot_mapping, heads[:, num_heads:])
        return qkv[:, : num_heads * head_dim], kv_cache

    return launch
