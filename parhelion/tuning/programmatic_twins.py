"""Configs for programmatic dependent launch: what it gains shows only where kernels follow one another."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.fused_rope_attention.launch import AHEAD, RopeAttentionConfig
from parhelion.ops.gemm.candidates import SMALL_BUCKET
from parhelion.ops.gemm.config import MAX_SPLIT_K, GemmConfig, GemmShape
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.ops.weight_only_mv.config import MvConfig
from parhelion.ops.weight_only_mv.launch import with_more_or_less_ahead
from parhelion.tuning.prune import gemm_of

MOST_TOKENS = 256
"""Beyond, a step's kernels are so long that what lies between them does not count."""

_AHEAD = (1, 2)
"""Steps of K that a GEMM may read of its weight before it waits."""

_SPANS = (256, 512, 1024)
"""Bytes of a row of the weight that a program may read before it waits, all there are for it."""

_THREAD_BYTES = 512
"""Of the weight, what a thread may hold in registers meanwhile."""


def twins(config: Any, contract: Contract, bucket: int, target: GemmTarget) -> list[Any]:
    """A config's programmatic versions: of products and of attention some that read more or less ahead, and one that
    changes nothing else.
    """
    if not target.programmatic or bucket > MOST_TOKENS or not hasattr(config, "programmatic"):
        return []
    twin = dataclasses.replace(config, programmatic=True)
    if type(twin) is RopeAttentionConfig:
        return [twin, *(dataclasses.replace(twin, ahead=keys, prefetched=more) for keys, more in AHEAD)]
    if isinstance(contract, WeightOnlyMv) and isinstance(twin, MvConfig):
        return with_more_or_less_ahead(contract, twin)
    if not isinstance(twin, GemmConfig):
        return [twin]
    found = [twin, *(dataclasses.replace(twin, ahead=steps) for steps in _AHEAD)]
    shape = gemm_of(contract, target)
    if shape is not None and shape.group is None and target.wide_mma and bucket <= SMALL_BUCKET:
        found += _all_ahead(twin, shape)
    return list(dict.fromkeys(found))


def _all_ahead(config: GemmConfig, shape: GemmShape) -> list[GemmConfig]:
    """Programs so small that each reads all of its weight before it waits: nothing is left to be loaded then.

    Swapped, since the matrix unit takes its left operand from registers.
    """
    found = []
    for block_n, span_bytes in itertools.product((64, 128), _SPANS):
        span = span_bytes // shape.weight_bytes
        split_k, rest = divmod(shape.in_features, span)
        warps = max(4, block_n * span_bytes // (32 * _THREAD_BYTES))
        block_k = span // 2
        if rest == 0 and split_k <= MAX_SPLIT_K:
            found.append(
                dataclasses.replace(
                    config,
                    block_n=block_n,
                    block_k=block_k,
                    swap_ab=True,
                    split_k=split_k,
                    num_warps=warps,
                    ahead=span // block_k,
                )
            )
    return found


def is_programmatic(config: Any) -> bool:
    """Whether a config is for programmatic dependent launch."""
    return bool(getattr(config, "programmatic", False))


def launched_plainly(config: Any) -> Any:
    """The same without programmatic dependent launch."""
    return dataclasses.replace(config, programmatic=False) if is_programmatic(config) else config
