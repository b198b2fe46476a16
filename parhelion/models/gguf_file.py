"""Weights from a GGUF file: each tensor dequantized when asked for, under its Hugging Face name."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import Checkpoint
from parhelion.models.config import ModelConfig
from parhelion.models.gguf_config import ROPE_FACTORS, gguf_model_config
from parhelion.models.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from parhelion.quantization import Section

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NATIVE: dict[GGMLQuantizationType, npt.DTypeLike] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}
# Dequantizing in pieces keeps numpy's temporaries small beside the result.
_CHUNK_ELEMENTS = 1 << 22


class GgufCheckpoint(Checkpoint):
    """A GGUF file. Tensors come out as float32, whatever their type in the file."""

    def __init__(self, path: Path) -> None:
        """Read the header of ``path``.

        Raises:
            CheckpointError: damaged, unsupported, or with tensors that no supported model has.
        """
        self._header = read_gguf_header(path)
        self._config = gguf_model_config(self._header)
        self._infos = _by_hugging_face_name(self._header)

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def source_path(self) -> Path:
        return self._header.path

    @property
    def total_bytes(self) -> int:
        return sum(info.num_bytes for info in self._header.tensors.values())

    def names(self) -> list[str]:
        return list(self._infos)

    def has(self, name: str) -> bool:
        return name in self._infos

    def tensor(self, name: str) -> torch.Tensor:
        info = self._info(name)
        tensor = torch.from_numpy(_dequantized(self._header.path, info))
        heads = self._permuted_heads(info.name)
        return tensor if heads is None else unpermuted_rows(tensor, heads)

    def section(self, name: str, section: Section) -> torch.Tensor:
        info = self._info(name)
        tensor = torch.from_numpy(_dequantized(self._header.path, info, section))
        heads = self._permuted_heads(info.name)
        if heads is None:
            return tensor
        # Rows are interleaved within heads, so sections of whole heads keep theirs.
        kept, rest = divmod(heads * tensor.shape[0], info.shape[0])
        assert rest == 0, f"{name}: a section of rows must hold whole heads"
        return unpermuted_rows(tensor, kept)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def _info(self, name: str) -> TensorInfo:
        info = self._infos.get(name)
        if info is None:
            raise self.missing(name)
        return info

    def _permuted_heads(self, stored_name: str) -> int | None:
        """How many heads' rows are interleaved in this tensor; None when its rows are in order."""
        match = _BLOCK.fullmatch(stored_name)
        if match is None or self._header.text("general.architecture") != "llama":
            return None
        return {"attn_q": self._config.num_heads, "attn_k": self._config.num_kv_heads}.get(match[2])


def unpermuted_rows(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo the row order of Llama's Q and K in GGUF.

    ggml rotates neighbouring pairs of rows of a head, transformers rotates row i with row i + head_dim / 2; the
    converter interleaves the two halves of each head to bridge this.

    Args:
        tensor: ``[num_heads * head_dim, ...]``, a weight or a bias.
        num_heads: heads stacked in the first dimension.

    Returns:
        The same shape, with the halves of each head one after the other.
    """
    pairs = tensor.shape[0] // num_heads // 2
    return tensor.reshape(num_heads, pairs, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _by_hugging_face_name(header: GgufHeader) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    unknown: list[str] = []
    for stored_name, info in header.tensors.items():
        if stored_name == ROPE_FACTORS:
            continue  # part of the configuration
        name = _hugging_face_name(stored_name)
        if name is None:
            unknown.append(stored_name)
        else:
            infos[name] = info
    if unknown:
        raise CheckpointError(
            f"{header.path} holds {len(unknown)} tensors that the supported architectures do not have, such as "
            f"{unknown[0]}: convert the model from its Hugging Face folder again"
        )
    return infos


def _hugging_face_name(stored_name: str) -> str | None:
    if stored_name in _OUTER_NAMES:
        return _OUTER_NAMES[stored_name]
    match = _BLOCK.fullmatch(stored_name)
    if match is None or match[2] not in _BLOCK_NAMES:
        return None
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"


def _dequantized(path: Path, info: TensorInfo, section: Section | None = None) -> npt.NDArray[np.float32]:
    """The tensor or a section of it as float32, read in pieces of whole rows.

    A vector is one row, of which a section is cut like columns.
    """
    row_elements = info.shape[-1] if info.shape else 1
    num_rows = int(np.prod(info.shape[:-1], dtype=np.int64))
    first_row, columns, shape = 0, slice(None), info.shape
    if section is not None:
        shape = section.shape(info.shape)
        if section.dim == len(info.shape) - 1:
            columns = slice(section.start, section.stop)
        else:
            first_row, num_rows = section.start, section.size
    block_size, block_bytes = GGML_QUANT_SIZES[info.type]
    row_bytes = row_elements // block_size * block_bytes
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // max(row_elements, 1))
    result = np.empty((num_rows, len(range(row_elements)[columns])), np.float32)
    for start in range(0, num_rows, rows_per_chunk):
        count = min(rows_per_chunk, num_rows - start)
        offset = info.offset + (first_row + start) * row_bytes
        raw = np.fromfile(path, np.uint8, count=count * row_bytes, offset=offset)
        if raw.size != count * row_bytes:
            raise CheckpointError(f"{path} became shorter while it was read (tensor {info.name}): fetch it again")
        result[start : start + count] = _decode_rows(path, info, raw.reshape(count, row_bytes))[:, columns]
    return result.reshape(shape)


def _decode_rows(path: Path, info: TensorInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.floating]:
    if info.type in _NATIVE:
        return raw.view(_NATIVE[info.type])
    try:
        return gguf.dequantize(raw, info.type)  # type: ignore[no-any-return]  # the package has no types
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path}: tensor {info.name} has type {info.type.name}, which the gguf package cannot dequantize: "
            "convert the model to a common type such as Q8_0"
        ) from error
