"""Configs of the Gluon program of ``fused_rope_attention`` that are worth trying."""

from __future__ import annotations

from dataclasses import replace

from parhelion.ops.decode_attention.config import DecodeAttentionConfig

_SHAPES = ((4, 3), (2, 3), (2, 6))
"""Warps, and tiles of the ring: of the first and the last two programs fit a Hopper's processor, of the second four."""

_FEW_ROWS = 32
"""Below, a row's keys may be worth dividing."""


def worth_trying(usual: DecodeAttentionConfig, bucket: int) -> list[DecodeAttentionConfig]:
    """The usual config, and those that have other warps and tiles, or divide a row's keys otherwise."""
    splits = (128, 256, 64) if bucket < _FEW_ROWS else (128,)
    varied = [
        replace(usual, programs=programs, gluon_warps=warps, ring=ring)
        for programs in splits
        for warps, ring in _SHAPES
    ]
    return list(dict.fromkeys([usual, *varied]))
