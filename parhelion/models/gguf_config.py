"""The model configuration that a GGUF file's metadata describes."""

from __future__ import annotations

import numpy as np

from parhelion.errors import CheckpointError
from parhelion.models.config import ModelConfig, RopeConfig
from parhelion.models.gguf_header import GgufHeader

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF's names of the supported architectures, and the registry's."""

ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.x: divisors of the inverse frequencies, ``[head_dim / 2]`` float32."""


def gguf_model_config(header: GgufHeader) -> ModelConfig:
    """Dimensions and switches of the model.

    Raises:
        CheckpointError: an unsupported architecture, rope scaling or split, or missing metadata.
    """
    name = _architecture(header)
    num_heads = header.require_size(f"{name}.attention.head_count")
    hidden_size = header.require_size(f"{name}.embedding_length")
    head_dim = header.integer(f"{name}.attention.key_length") or hidden_size // num_heads
    _check_head_dim(header, name, head_dim)
    num_layers = header.require_size(f"{name}.block_count")
    window = header.integer(f"{name}.attention.sliding_window") if name == "llama" else None
    return ModelConfig(
        architecture=ARCHITECTURES[name],
        vocab_size=_vocab_size(header),
        hidden_size=hidden_size,
        intermediate_size=header.require_size(f"{name}.feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=header.integer(f"{name}.attention.head_count_kv") or num_heads,
        head_dim=head_dim,
        rms_norm_eps=header.real(f"{name}.attention.layer_norm_rms_epsilon") or 1e-6,
        rope=_rope(header, name, head_dim),
        max_position=header.require_size(f"{name}.context_length"),
        tie_word_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        attention_output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_down.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        sliding_windows=(window,) * num_layers if window else (),
        eos_token_ids=gguf_eos_token_ids(header),
        bos_token_id=header.integer("tokenizer.ggml.bos_token_id"),
    )


def gguf_eos_token_ids(header: GgufHeader) -> tuple[int, ...]:
    """Ids that end a text or a turn, without doubles."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    found = [header.integer(key) for key in keys]
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _architecture(header: GgufHeader) -> str:
    name = header.text("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.path} holds a model of architecture {name!r}; supported are {', '.join(ARCHITECTURES)}"
        )
    if header.integer(f"{name}.expert_count"):
        raise CheckpointError(f"{header.path} holds a mixture of experts, which is not supported: use a dense model")
    if (header.integer("split.count") or 1) > 1:
        raise CheckpointError(
            f"{header.path} is one part of a split GGUF: join the parts with 'llama-gguf-split --merge' first"
        )
    return name


def _vocab_size(header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{header.path} lacks tensor token_embd.weight: convert the model to GGUF again")
    return embedding.shape[0]


def _check_head_dim(header: GgufHeader, name: str, head_dim: int) -> None:
    value_length = header.integer(f"{name}.attention.value_length") or head_dim
    if value_length != head_dim:
        raise CheckpointError(
            f"{header.path}: keys have {head_dim} elements and values {value_length}; only equal ones are supported"
        )
    rotated = header.integer(f"{name}.rope.dimension_count") or head_dim
    if rotated != head_dim:
        raise CheckpointError(
            f"{header.path} rotates {rotated} of {head_dim} elements of a head; partial rotation is not supported"
        )


def _rope(header: GgufHeader, name: str, head_dim: int) -> RopeConfig:
    theta = header.real(f"{name}.rope.freq_base") or 10000.0
    scaling = header.text(f"{name}.rope.scaling.type") or "none"
    factor = header.real(f"{name}.rope.scaling.factor") or header.real(f"{name}.rope.scale_linear") or 1.0
    factors = _rope_factors(header, head_dim)
    if scaling not in ("none", "linear"):
        raise CheckpointError(
            f"{header.path} asks for rope scaling {scaling!r}; supported are linear, and llama3's {ROPE_FACTORS}"
        )
    if factor == 1.0:
        return RopeConfig(theta=theta, freq_factors=factors)
    return RopeConfig(theta=theta, scaling="linear", factor=factor, freq_factors=factors)


def _rope_factors(header: GgufHeader, head_dim: int) -> tuple[float, ...] | None:
    info = header.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    if info.shape != (head_dim // 2,) or info.type.name != "F32":
        raise CheckpointError(
            f"{header.path}: {ROPE_FACTORS} is {info.type.name} {info.shape} where F32 ({head_dim // 2},) is expected"
        )
    factors = np.fromfile(header.path, np.dtype("<f4"), count=info.shape[0], offset=info.offset)
    return tuple(float(factor) for factor in factors)
