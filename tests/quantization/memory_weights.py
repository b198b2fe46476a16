"""Weights that lie in a dict, as `load_linear` takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class MemoryWeights:
    """Hands out tensors of a dict, and notes which were asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.asked: list[str] = []

    def get(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._tensors[name]
        assert tuple(tensor.shape) == shape, name
        self.asked.append(name)
        return tensor

    def has(self, name: str) -> bool:
        return name in self._tensors


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, float32; deviation 0.02 as in a trained weight."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
