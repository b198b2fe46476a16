"""Rotary frequencies under the scalings that checkpoints ask for."""

from __future__ import annotations

import math

import torch

from parhelion.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32 radians per position.

    Source: ``linear`` is position interpolation (Chen et al., 2023); ``llama3`` is the scheme of the Llama 3.1 release:
    wavelengths beyond the original context are stretched by the factor, short ones kept, those between interpolated.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.freq_factors is not None:
        frequencies = frequencies / torch.tensor(rope.freq_factors)
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        turns_in_context = rope.original_max_position * frequencies / (2 * math.pi)
        kept = (turns_in_context - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / rope.factor
    return frequencies
