"""Weights from a Hugging Face style folder: safetensors, in one file or in shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast

import msgspec
import safetensors
import torch
from safetensors import SafetensorError

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import Checkpoint
from parhelion.models.config import ModelConfig
from parhelion.models.hf_config import read_hf_config
from parhelion.models.safetensors_stream import SafetensorsStream, StagingBuffer
from parhelion.quantization import Section

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")

_Read = TypeVar("_Read")


class _ShardIndex(msgspec.Struct):
    """The part of model.safetensors.index.json that matters: which shard holds a tensor."""

    weight_map: dict[str, str]


class _Slice(Protocol):
    """A tensor of an open safetensors file that has not been read yet."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor: ...


class _Shard(Protocol):
    """An open safetensors file, whose own class has no types."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...

    def get_slice(self, name: str) -> _Slice: ...


class _Reader(Protocol):
    """Reads the tensors of one shard."""

    def tensor(self, name: str) -> torch.Tensor: ...

    def section(self, name: str, section: Section) -> torch.Tensor: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def close(self) -> None: ...


class _MappedShard:
    """Tensors share a shard's memory map, page by page as they are touched."""

    def __init__(self, file: _Shard) -> None:
        self._file = file

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def section(self, name: str, section: Section) -> torch.Tensor:
        """Only the pages that hold the section are touched."""
        kept = slice(section.start, section.stop)
        return self._file.get_slice(name)[(slice(None),) * section.dim + (kept,)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def close(self) -> None:
        # The file is unmapped when it is dropped and no tensor that was read from it lives any more.
        return


class SafetensorsCheckpoint(Checkpoint):
    """A folder with config.json and safetensors. Tensors come out in the file's dtype."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Open every shard and check that it holds what the index promises.

        Args:
            folder: with config.json and safetensors.
            device: stream tensors there through a small buffer; None leaves them in memory maps on the CPU.

        Raises:
            CheckpointError: a missing, truncated or damaged file, no safetensors, or an unsupported model.
        """
        self._folder = folder
        self._config = read_hf_config(folder)
        shards = _shard_names(folder)
        files = {shard: _open_shard(folder / shard) for shard in dict.fromkeys(shards.values())}
        if not shards:
            files = {_SINGLE: _open_shard(folder / _SINGLE)}
            shards = dict.fromkeys(files[_SINGLE].keys(), _SINGLE)
        _check_index(folder, shards, files)
        self._shards = shards
        self._readers = _readers(folder, files, device)
        self._total_bytes = sum((folder / shard).stat().st_size for shard in files)

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def source_path(self) -> Path:
        return self._folder

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def names(self) -> list[str]:
        return list(self._shards)

    def has(self, name: str) -> bool:
        return name in self._shards

    def tensor(self, name: str) -> torch.Tensor:
        return self._read(name, lambda reader: reader.tensor(name))

    def section(self, name: str, section: Section) -> torch.Tensor:
        return self._read(name, lambda reader: reader.section(name, section))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._read(name, lambda reader: reader.shape(name))

    def _read(self, name: str, read: Callable[[_Reader], _Read]) -> _Read:
        shard = self._shards.get(name)
        if shard is None:
            raise self.missing(name)
        try:
            return read(self._readers[shard])
        except KeyError:
            raise CheckpointError(f"{self._folder} is closed; open it again to read {name}") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {name} from {self._folder / shard}: {error}") from error

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


def _readers(folder: Path, files: dict[str, _Shard], device: torch.device | None) -> dict[str, _Reader]:
    if device is None:
        return {shard: _MappedShard(file) for shard, file in files.items()}
    staging = StagingBuffer(device)
    return {shard: SafetensorsStream(folder / shard, staging) for shard in files}


def _shard_names(folder: Path) -> dict[str, str]:
    """Tensor name to shard file, by the index; empty when there is a single file and no index."""
    index = folder / _INDEX
    if (folder / _SINGLE).is_file() and not index.is_file():
        return {}
    if not index.is_file():
        raise _no_weights(folder)
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_ShardIndex).weight_map
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{index} is no valid shard index ({error}): fetch it again") from error
    if not weight_map:
        raise CheckpointError(f"{index} lists no tensors: fetch it again")
    for shard in dict.fromkeys(weight_map.values()):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} refers to {shard!r}, outside the folder: it is damaged or malicious")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder} lacks the shard {shard} that {_INDEX} lists: fetch that file again")
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} holds weights only as pickles ({pickles[0]}), which can run code when read and are never "
            "opened: convert them to safetensors (transformers' save_pretrained does)"
        )
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return CheckpointError(f"{folder} holds no {_SINGLE}, but a GGUF file: give the path {folder / ggufs[0]}")
    return CheckpointError(f"{folder} holds neither {_SINGLE} nor {_INDEX}: fetch the weights, or give another folder")


def _open_shard(path: Path) -> _Shard:
    try:
        return cast(_Shard, safetensors.safe_open(str(path), framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): fetch it again") from error


def _check_index(folder: Path, shards: dict[str, str], files: dict[str, _Shard]) -> None:
    held = {shard: frozenset(file.keys()) for shard, file in files.items()}
    for name, shard in shards.items():
        if name not in held[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks tensor {name}, which {_INDEX} promises: fetch the shard and the index again"
            )
