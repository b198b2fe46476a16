"""Reading safetensors straight to a device, with little memory on the host.

A memory map counts every page that was touched as this process's memory, and hands a device its bytes by page fault.
Here a file is read in pieces into one small buffer, pinned where the device is a GPU, and copied from there.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import msgspec
import torch

from parhelion.errors import CheckpointError
from parhelion.quantization import Section

_STAGING_BYTES = 32 << 20
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _TensorEntry(msgspec.Struct):
    """One tensor in a safetensors header; offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class StagingBuffer:
    """Host memory that tensors pass through on their way to a device; one serves all files."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        pinned = device.type == "cuda"
        self._buffer = torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=pinned)
        self._view = memoryview(self._buffer.numpy())

    def read(self, file: io.FileIO, num_bytes: int) -> torch.Tensor | None:
        """The next bytes of the file on the device, [num_bytes] uint8; None if the file ends before."""
        target = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        position = 0
        while position < num_bytes:
            count = file.readinto(self._view[: min(_STAGING_BYTES, num_bytes - position)])
            if not count:
                return None
            # This copy waits until the device has the bytes, so the buffer may be filled again.
            target[position : position + count].copy_(self._buffer[:count])
            position += count
        return target


class SafetensorsStream:
    """One safetensors file that ``safetensors`` has already found to be sound."""

    def __init__(self, path: Path, staging: StagingBuffer) -> None:
        """Read the header.

        Raises:
            CheckpointError: the header cannot be read.
        """
        self._path = path
        self._staging = staging
        try:
            self._file = io.FileIO(path)
            header_bytes = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
            header = msgspec.json.decode(self._file.read(header_bytes), type=dict[str, msgspec.Raw])
            header.pop(_METADATA, None)
            self._entries = {name: msgspec.json.decode(raw, type=_TensorEntry) for name, raw in header.items()}
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{path} is truncated or damaged ({error}): fetch it again") from error
        self._data_start = _LENGTH_BYTES + header_bytes

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor to the device, in the file's dtype.

        Raises:
            CheckpointError: a dtype that torch lacks, or a file that became shorter.
        """
        return self._elements(name, 0, math.prod(self._entries[name].shape)).view(self._entries[name].shape)

    def section(self, name: str, section: Section) -> torch.Tensor:
        """Read a section of one tensor to the device. Rows are all that is read; of columns whole rows are read, in
        pieces that are cut on the device.

        Raises:
            CheckpointError: see ``tensor``.
        """
        whole = self.shape(name)
        shape = section.shape(whole)
        row_elements = math.prod(whole[1:])
        if section.dim == 0:
            return self._elements(name, section.start * row_elements, math.prod(shape)).view(shape)
        rows = max(1, _STAGING_BYTES // (row_elements * self._dtype(name).itemsize))
        result = torch.empty(shape, dtype=self._dtype(name), device=self._staging.device)
        for start in range(0, whole[0], rows):
            count = min(rows, whole[0] - start)
            piece = self._elements(name, start * row_elements, count * row_elements).view(count, *whole[1:])
            result[start : start + count].copy_(piece.narrow(section.dim, section.start, section.size))
        return result

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._entries[name].shape)

    def _elements(self, name: str, start: int, count: int) -> torch.Tensor:
        """``count`` elements of a tensor from number ``start``, [count]."""
        dtype = self._dtype(name)
        self._file.seek(self._data_start + self._entries[name].data_offsets[0] + start * dtype.itemsize)
        raw = self._staging.read(self._file, count * dtype.itemsize)
        if raw is None:
            raise CheckpointError(f"{self._path} became shorter while it was read (tensor {name}): fetch it again")
        return raw.view(dtype)

    def _dtype(self, name: str) -> torch.dtype:
        dtype = self._entries[name].dtype
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{name} in {self._path} has dtype {dtype}; supported are {', '.join(_DTYPES)}: convert the model"
            )
        return _DTYPES[dtype]

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._file.close()
