"""The metadata and the tensor list of a GGUF file (spec: ggml's docs/gguf.md, versions 2 and 3, little-endian).

The ``gguf`` package's own reader makes several numpy views for each string, which for a vocabulary of 49,152 takes
seconds and 158 MB; this one reads the same bytes in milliseconds. Types and block sizes still come from that package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from parhelion.errors import CheckpointError

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_SCALAR_FORMATS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes:
        shape: outermost dimension first, as torch has it (the file holds it the other way round).
        type: how its elements are encoded.
        offset: of its first byte, from the start of the file.
        num_bytes: as stored.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything in a GGUF file but the tensors' contents."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]

    def integer(self, key: str) -> int | None:
        """The value of an integer key, or None where the file has no such key."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int):
            raise self._wrong_type(key, "an integer")
        return int(value)

    def real(self, key: str) -> float | None:
        """The value of a number key as a float, or None."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float):
            raise self._wrong_type(key, "a number")
        return float(value)

    def text(self, key: str) -> str | None:
        """The value of a string key, or None."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong_type(key, "a string")
        return value

    def texts(self, key: str) -> list[str] | None:
        """The value of an array-of-strings key, or None."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or (value and not isinstance(value[0], str)):
            raise self._wrong_type(key, "a list of strings")
        return value  # type: ignore[return-value]  # GGUF arrays hold one type throughout

    def numbers(self, key: str) -> list[float] | None:
        """The value of an array-of-numbers key, or None."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or (value and isinstance(value[0], str)):
            raise self._wrong_type(key, "a list of numbers")
        return value  # type: ignore[return-value]  # GGUF arrays hold one type throughout

    def require_size(self, key: str) -> int:
        """Like ``integer``, for sizes and counts that every model has.

        Raises:
            CheckpointError: the key is missing, or its value is below 1.
        """
        value = self.integer(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no metadata {key!r}: convert the model to GGUF again")
        if value < 1:
            raise CheckpointError(f"{self.path}: metadata {key!r} is {value}; it must be at least 1: convert it again")
        return value

    def _wrong_type(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: metadata {key!r} is not {wanted}: convert the model to GGUF again")


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: no GGUF file, an unsupported version, or a damaged or truncated file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).header()
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError; decoding raises one too
        raise CheckpointError(f"cannot read {path}: {error}; fetch or convert the file again") from error
    except (struct.error, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path} ends within its header or is damaged ({error}): fetch it again") from error


class _Cursor:
    """Reads one value after another."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def header(self) -> GgufHeader:
        if self.data[:4] != _MAGIC:
            raise CheckpointError(f"{self.path} is no GGUF file: its first bytes are {self.data[:4]!r}, not {_MAGIC!r}")
        self.position = 4
        version = self.unsigned("I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path} has GGUF version {version}; supported are {_VERSIONS}, little-endian: convert it again"
            )
        num_tensors, num_keys = self.unsigned("Q"), self.unsigned("Q")
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self.string()
            metadata[key] = self.value(self.value_type())
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}: convert the model to GGUF again")
        return GgufHeader(self.path, metadata, self.tensor_infos(num_tensors, alignment))

    def tensor_infos(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        entries = [self.tensor_entry() for _ in range(count)]
        start = -(-self.position // alignment) * alignment
        infos: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in entries:
            info = TensorInfo(name, shape, kind, start + offset, self.stored_bytes(name, shape, kind))
            if info.offset + info.num_bytes > len(self.data):
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name} ends at byte {info.offset + info.num_bytes} of "
                    f"{len(self.data)}; fetch the file again"
                )
            if name in infos:
                raise CheckpointError(f"{self.path} holds tensor {name} twice: convert the model to GGUF again")
            infos[name] = info
        return infos

    def tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self.string()
        num_dimensions = self.unsigned("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise CheckpointError(f"{self.path}: tensor {name} has {num_dimensions} dimensions: the file is damaged")
        shape = tuple(self.unsigned("Q") for _ in range(num_dimensions))[::-1]
        raw_type = self.unsigned("I")
        try:
            kind = GGMLQuantizationType(raw_type)
        except ValueError:
            raise CheckpointError(
                f"{self.path}: tensor {name} has type {raw_type}, which the installed gguf package does not know: "
                "upgrade it, or convert the model to a common type such as Q8_0"
            ) from None
        return name, shape, kind, self.unsigned("Q")

    def stored_bytes(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        num_elements = 1
        for size in shape:
            num_elements *= size
        if shape and shape[-1] % block_size:
            raise CheckpointError(
                f"{self.path}: rows of tensor {name} hold {shape[-1]} elements, no multiple of {kind.name}'s block of "
                f"{block_size}: convert the model to GGUF again"
            )
        return int(num_elements // block_size * block_bytes)

    def value_type(self) -> GGUFValueType:
        raw = self.unsigned("I")
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise CheckpointError(f"{self.path}: a metadata value has type {raw}: the file is damaged") from None

    def value(self, kind: GGUFValueType) -> Value:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self.array()
        return self.unpack(_SCALAR_FORMATS[kind], 1)[0]

    def array(self) -> list[Scalar]:
        kind, count = self.value_type(), self.unsigned("Q")
        if kind == GGUFValueType.STRING:
            return [self.string() for _ in range(self.plausible(count, 8))]
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError(f"{self.path}: nested arrays in the metadata are not supported")
        layout = _SCALAR_FORMATS[kind]
        return list(self.unpack(layout, self.plausible(count, struct.calcsize(layout))))

    def plausible(self, count: int, item_bytes: int) -> int:
        """The count, if that many items can follow in this file at all."""
        if count * item_bytes > len(self.data) - self.position:
            raise CheckpointError(f"{self.path} announces {count} values past its end: the file is damaged")
        return count

    def string(self) -> str:
        length = self.plausible(self.unsigned("Q"), 1)
        start = self.position
        self.position += length
        return self.data[start : self.position].decode("utf-8", errors="replace")

    def unsigned(self, layout: str) -> int:
        return int(self.unpack(layout, 1)[0])

    def unpack(self, layout: str, count: int) -> tuple[Scalar, ...]:
        form = f"<{count}{layout}"
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values
