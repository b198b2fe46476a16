"""Configs for programmatic dependent launch: what it gains shows only where kernels follow one another."""

from __future__ import annotations

import dataclasses
from typing import Any

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import GemmTarget

MOST_TOKENS = 256
"""Beyond, a step's kernels are so long that what lies between them does not count."""

_AHEAD = (1, 2)
"""Steps of K that a GEMM may read of its weight before it waits."""


def twins(config: Any, bucket: int, target: GemmTarget) -> list[Any]:
    """A config's programmatic versions: of a GEMM with as much read ahead as there is, and with nothing."""
    if not target.programmatic or bucket > MOST_TOKENS or not hasattr(config, "programmatic"):
        return []
    twin = dataclasses.replace(config, programmatic=True)
    if not isinstance(twin, GemmConfig):
        return [twin]
    return [twin, *(dataclasses.replace(twin, ahead=steps) for steps in _AHEAD)]


def is_programmatic(config: Any) -> bool:
    """Whether a config is for programmatic dependent launch."""
    return bool(getattr(config, "programmatic", False))
