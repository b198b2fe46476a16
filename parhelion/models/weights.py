"""Where a model's parameters come from: a checkpoint, or small random numbers of the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import Checkpoint

Progress = Callable[[int, int], None]
"""Called with tensors loaded so far and how many there are."""


class Weights(Protocol):
    """Tensors by Hugging Face name."""

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name, [*shape] in some float dtype."""
        ...

    def has(self, name: str) -> bool: ...


class CheckpointWeights:
    """Reads a checkpoint, and checks every shape against what the configuration implies."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())
        self._progress = progress
        self._read = 0

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: it is missing, damaged or of another shape.
        """
        tensor = self._checkpoint.tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name} in {self._checkpoint.source_path} has shape {tuple(tensor.shape)}, but the configuration "
                f"implies {shape}: the weights and the configuration belong to different models"
            )
        self._read += 1
        if self._progress is not None:
            self._progress(self._read, len(self._names))
        return tensor

    def has(self, name: str) -> bool:
        return name in self._names


class DummyWeights:
    """Small random numbers from a seed, for trying out shapes without a checkpoint's weights."""

    def __init__(self, seed: int, tied: bool) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._tied = tied

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Ones for norms, zeros for biases, else normal numbers of standard deviation 0.02."""
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith(".bias"):
            return torch.zeros(shape)
        return torch.randn(shape, generator=self._generator) * 0.02

    def has(self, name: str) -> bool:
        return name != "lm_head.weight" or not self._tied
