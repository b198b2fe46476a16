"""Rows that break careless kernels, as changes to a contract's own sample inputs."""

from __future__ import annotations

import torch

AWKWARD_ROWS = ("zeros", "nan", "inf", "denormal", "huge", "one_spike")

AWKWARD_TOKENS = (1, 2, 7, 13, 64, 67)
"""One, primes, a power of two and its neighbour: numbers that are no multiple of a tile."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_awkward_row(x: torch.Tensor, kind: str, row: int = 0) -> torch.Tensor:
    """x [M, ...] with one row replaced; the others must come out as if it were not there."""
    x = x.clone()
    if kind == "zeros":
        x[row] = 0
    elif kind == "nan":
        x[row, ..., 3] = float("nan")
    elif kind == "inf":
        x[row, ..., 5] = float("inf")
    elif kind == "denormal":
        x[row] = 1e-40 if x.dtype == torch.float32 else 1e-39
    elif kind == "huge":
        x[row] = x[row].sign() * 1e18
    elif kind == "one_spike":
        x[row] = 1e-3
        x[row, ..., 1] = 1e4
    else:
        raise AssertionError(kind)
    return x
