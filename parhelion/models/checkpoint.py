"""A model's weights and configuration, in one form for every file format.

Checkpoints are read as data: nothing in them is ever executed, so there are no pickles and no remote code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from parhelion.errors import CheckpointError
from parhelion.models.config import ModelConfig
from parhelion.quantization import Section


class Checkpoint(ABC):
    """Weights by their Hugging Face names, such as ``model.layers.3.self_attn.q_proj.weight``.

    A context manager: leaving it closes the files. Tensors stay valid after that.
    """

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """The model's dimensions and switches."""

    @property
    @abstractmethod
    def source_path(self) -> Path:
        """The file or folder that it was opened from."""

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """Bytes of all weights as stored."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU or on the device given at opening; the checkpoint keeps no reference to it.

        Returns:
            The tensor in the file's dtype (safetensors) or as float32 (GGUF); weights are
            ``[out_features, in_features]``, as codes or plain.

        Raises:
            CheckpointError: there is no such tensor, or it cannot be read.
        """

    @abstractmethod
    def section(self, name: str, section: Section) -> torch.Tensor:
        """Read a section of one tensor, as ``tensor`` does; the rest of it is not kept, nor read where the format
        allows that.
        """

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as a whole, as its header says.

        Raises:
            CheckpointError: there is no such tensor.
        """

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""

    def close(self) -> None:
        """Close the files; nothing can be read any more."""
        return

    def missing(self, name: str) -> CheckpointError:
        """The error of asking for a tensor that is not there."""
        return CheckpointError(
            f"{self.source_path} has no tensor {name}, which {self.config.architecture} needs: "
            "the checkpoint is incomplete or of another model; fetch or convert it again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: Path, device: torch.device | None = None) -> Checkpoint:
    """Open a ``.gguf`` file or a Hugging Face style folder (config.json and safetensors).

    Args:
        path: the file or the folder.
        device: safetensors are streamed straight there, so that the host needs little memory. None leaves them
            memory-mapped on the CPU. GGUF tensors are dequantized and so come out on the CPU in any case.

    Raises:
        CheckpointError: neither of these, damaged, incomplete, or of an unsupported model.
    """
    # The two formats build on this module, so they are imported when one is opened.
    from parhelion.models.gguf_file import GgufCheckpoint
    from parhelion.models.hf_files import SafetensorsCheckpoint

    if path.is_dir():
        return SafetensorsCheckpoint(path, device)
    return GgufCheckpoint(_existing(path))


def read_model_config(path: Path) -> ModelConfig:
    """What a ``.gguf`` file or a Hugging Face style folder says of its model; no weights need be there.

    Raises:
        CheckpointError: neither of these, damaged, or of an unsupported model.
    """
    from parhelion.models.gguf_file import GgufCheckpoint
    from parhelion.models.hf_config import read_hf_config

    return read_hf_config(path) if path.is_dir() else GgufCheckpoint(_existing(path)).config


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}")
    return path
