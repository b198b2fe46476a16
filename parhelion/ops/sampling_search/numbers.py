"""Numbers of ``top_k_top_p_sampling``: keys in the order of float32 values, and masses. Traced into tile programs."""

from __future__ import annotations

import torch


def keys_of(x: torch.Tensor) -> torch.Tensor:
    """int32 keys in the order of float32 values; both zeros are 0, and no number has the least key."""
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def values_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 values of keys."""
    return torch.where(keys >= 0, keys, keys ^ 0x7FFFFFFF).view(torch.float32)


def divisor_of(heat: torch.Tensor) -> torch.Tensor:
    """Of a row's logits; greedy rows, whose temperature is 0, are left as they are."""
    return torch.where(heat == 0, 1.0, heat)


def fixed(weight: torch.Tensor, by_count: torch.Tensor) -> torch.Tensor:
    """Counts as they are and masses, none of which is above 1, in units of 2**-40: int64 sums of both are exact."""
    return (weight * torch.where(by_count == 1, 1.0, 2.0**40)).to(torch.int64)


def mass_of(x: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(x - top), and 0 for hidden tokens even where all are."""
    return torch.where(x > -float("inf"), torch.exp(x - top), 0.0)


def kept_mass(x: torch.Tensor, top: torch.Tensor, low: torch.Tensor, by_count: torch.Tensor) -> torch.Tensor:
    """The mass of a tile of x whose keys are ``low`` or above, int64 in the units of ``fixed``."""
    return torch.sum(torch.where(keys_of(x) >= low.to(torch.int32), fixed(mass_of(x, top), by_count), 0), 0)


def tally_from(x: torch.Tensor, top: torch.Tensor, pivots: torch.Tensor, by_count: torch.Tensor) -> torch.Tensor:
    """How many of a tile of x, or what mass, int64, are from each of some keys on."""
    weight = fixed(torch.where(by_count == 1, 1.0, mass_of(x, top)), by_count)
    is_from = keys_of(x).unsqueeze(0) >= pivots.unsqueeze(1)
    return torch.sum(torch.where(is_from, weight.unsqueeze(0), 0), 1)
