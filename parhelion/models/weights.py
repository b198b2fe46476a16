"""Where a model's parameters come from: a checkpoint, or small random numbers of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import Checkpoint
from parhelion.models.random_values import RandomValues
from parhelion.quantization import UNQUANTIZED, QuantScheme, Section
from parhelion.quantization import Weights as TensorsByName
from parhelion.quantization.codes import code_max

Progress = Callable[[int, int], None]
"""Called with tensors loaded so far and how many there are."""

_CPU = torch.device("cpu")
_DUMMY_DEVIATION = 0.02
# Of eight-bit codes, so that hardly any (four deviations) would have to be cut off.
_CODE_DEVIATIONS = 4.0


class Weights(TensorsByName, Protocol):
    """Tensors by Hugging Face name: plain weights, 8-bit codes or scales."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors handed out so far, as they were kept."""
        ...


class CheckpointWeights:
    """Reads a checkpoint, and checks every shape against what the configuration implies."""

    def __init__(
        self, checkpoint: Checkpoint, progress: Progress | None = None, device: torch.device | None = None
    ) -> None:
        """Read from a checkpoint that stays open.

        Args:
            checkpoint: the source.
            progress: told after each tensor.
            device: where tensors come out; None leaves them where the checkpoint puts them.
        """
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())
        self._progress = progress
        self._device = device
        self._read = 0
        self.num_bytes = 0

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Read a tensor. One of a single element may have any number of dimensions in the file.

        Raises:
            CheckpointError: it is missing, damaged or of another shape.
        """
        tensor = self._checkpoint.tensor(name)
        if tensor.numel() == 1 == math.prod(shape):
            tensor = tensor.reshape(shape)
        self._check_shape(name, tuple(tensor.shape), shape)
        return self._handed_out(tensor)

    def get_section(self, name: str, section: Section, *shape: int) -> torch.Tensor:
        """Read a section of a tensor, whose shape as a whole is checked.

        Raises:
            CheckpointError: see ``get``.
        """
        self._check_shape(name, self._checkpoint.shape(name), shape)
        return self._handed_out(self._checkpoint.section(name, section))

    def _check_shape(self, name: str, found: tuple[int, ...], implied: tuple[int, ...]) -> None:
        if found != implied:
            raise CheckpointError(
                f"{name} in {self._checkpoint.source_path} has shape {found}, but the configuration "
                f"implies {implied}: the weights and the configuration belong to different models"
            )

    def _handed_out(self, tensor: torch.Tensor) -> torch.Tensor:
        self._read += 1
        self.num_bytes += tensor.nbytes
        if self._progress is not None:
            self._progress(self._read, len(self._names))
        return tensor if self._device is None else tensor.to(self._device)

    def has(self, name: str) -> bool:
        return name in self._names


class DummyWeights:
    """Small random numbers from a seed, for trying out shapes without a checkpoint's weights."""

    def __init__(
        self,
        seed: int,
        tied: bool,
        scheme: QuantScheme = UNQUANTIZED,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make up weights.

        Args:
            seed: equal seeds give a tensor of a name equal values on equal devices, whatever else is read.
            tied: there is no projection to the vocabulary of its own.
            scheme: where it is one of a checkpoint, the linear layers it covers get codes and scales.
            device: where they are made.
            dtype: of weights that are not codes.
        """
        self._random = RandomValues(seed, device)
        self._tied = tied
        self._scheme = scheme if scheme.source == "checkpoint" else UNQUANTIZED
        self._device = device
        self._dtype = dtype
        self.num_bytes = 0

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Ones for norms, zeros for biases, else normal numbers of deviation 0.02 or codes that stand for them."""
        tensor = self._make(name, shape)
        self.num_bytes += tensor.nbytes
        return tensor

    def get_section(self, name: str, section: Section, *shape: int) -> torch.Tensor:
        """A section of what ``get`` makes: all ranks together have the numbers of one that has everything."""
        tensor = section.of(self._make(name, shape))
        self.num_bytes += tensor.nbytes
        return tensor

    def has(self, name: str) -> bool:
        module, _, last = name.rpartition(".")
        if last.startswith("weight_"):
            return last == self._scheme.scale_name and self._scheme.applies_to(module)
        return name != "lm_head.weight" or not self._tied

    def _make(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        module, _, last = name.rpartition(".")
        self._random.begin(name)
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        if last == "bias":
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        codes = self._scheme.weight_dtype if self._scheme.applies_to(module) else None
        if codes is None:
            return self._random.normal(shape, _DUMMY_DEVIATION, self._dtype)
        code_deviation = code_max(codes) / _CODE_DEVIATIONS
        if last == self._scheme.scale_name:
            return torch.full(shape, _DUMMY_DEVIATION / code_deviation, device=self._device)
        return self._random.codes(shape, code_deviation, code_max(codes), codes)
