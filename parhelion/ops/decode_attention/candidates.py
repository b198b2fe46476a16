"""Configs of the Gluon program of ``fused_rope_attention`` that are worth trying."""

from __future__ import annotations

from dataclasses import replace

from parhelion.ops.decode_attention.config import DecodeAttentionConfig


def worth_trying(usual: DecodeAttentionConfig) -> list[DecodeAttentionConfig]:
    """The usual config, and those that divide a row's keys otherwise, or go through the heads first."""
    varied = [
        replace(usual, programs=programs, heads_first=heads_first, gluon_warps=warps)
        for programs in (128, 256, 512)
        for heads_first in (False, True)
        for warps in (4, 8)
    ]
    return list(dict.fromkeys([usual, *varied]))
