"""Tiny checkpoints, written by the tests that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCAB = 32, 4, 2, 2, 48

LLAMA_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
}


def write_config(folder: Path, changes: Mapping[str, object] | None = None, drop: tuple[str, ...] = ()) -> Path:
    """A folder with a Llama's config.json, changed as asked."""
    config = {**LLAMA_CONFIG, **(changes or {})}
    for name in drop:
        del config[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def some_tensors() -> dict[str, torch.Tensor]:
    """A few weights in several dtypes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(HIDDEN, HIDDEN, generator=generator).bfloat16(),
        "model.norm.weight": torch.randn(HIDDEN, generator=generator).half(),
    }


def write_single(folder: Path) -> dict[str, torch.Tensor]:
    """config.json and model.safetensors; returns what is in it."""
    tensors = some_tensors()
    save_file(tensors, write_config(folder) / "model.safetensors")
    return tensors


def write_sharded(folder: Path) -> dict[str, torch.Tensor]:
    """config.json, a shard a tensor, and the index; returns what is in them."""
    write_config(folder)
    tensors = some_tensors()
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        weight_map[name] = f"model-{number:05d}-of-{len(tensors):05d}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def gguf_writer(path: Path, architecture: str = "llama") -> gguf.GGUFWriter:
    """A writer with the metadata of a tiny model; ``finish`` it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    return writer


def random_array(*shape: int) -> npt.NDArray[np.float32]:
    """Standard normal numbers, the same for the same shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything out."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
