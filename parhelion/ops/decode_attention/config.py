"""How the Gluon program of ``fused_rope_attention`` is laid out."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace

from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import RopeAttentionConfig
from parhelion.ops.fused_rope_attention.launch import default_config as helion_config
from parhelion.ops.gemm.target import GemmTarget


@dataclass(frozen=True)
class DecodeAttentionConfig(RopeAttentionConfig):
    """The choices of ``RopeAttentionConfig``, of which ``programs`` and ``programmatic`` are the Gluon program's too;
    the others are for the steps that it is not for. See ``of_siblings`` for rows of which several are of one sequence.

    Attributes:
        ring: tiles that shared memory holds, each of 16 keys a warp and their values.
        gluon_warps: of a program.
    """

    ring: int = 3
    gluon_warps: int = 4


def untuned(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> DecodeAttentionConfig:
    """As Helion's program without measuring; it starts early where it can."""
    usual = helion_config(contract, bucket, target)
    shared = {field.name: getattr(usual, field.name) for field in fields(usual)}
    return DecodeAttentionConfig(**shared | {"programmatic": target.programmatic})


@functools.lru_cache(maxsize=1024)
def of_siblings(config: DecodeAttentionConfig) -> DecodeAttentionConfig:
    """For rows of which several are of one sequence, and a program's together. These are few and long, whatever was
    tuned for as many rows without siblings: four warps each, and two tiles, were the quickest or nearly so on an H200
    for 4 to 128 sequences, and fit any processor.
    """
    return replace(config, programs=128, gluon_warps=4, ring=2)
