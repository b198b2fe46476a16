"""Tiny quantized checkpoints in the formats people use, and the float weights they were made of.

The codes are made here by formulas of their own, not by the package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoints.tiny import write_config

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 256, 4, 2, 64, 384, 48
FP8 = torch.float8_e4m3fn

Tensors = dict[str, torch.Tensor]

PROJECTIONS: dict[str, tuple[int, int]] = {
    "model.layers.0.self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "model.layers.0.mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "model.layers.0.mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "model.layers.0.mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
"""[out_features, in_features] of every linear layer of the one block."""


@dataclass(frozen=True)
class Format:
    """A checkpoint format: its configuration, and how it stores a weight."""

    quantization_config: dict[str, object]
    scale_name: str
    store: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _compressed_tensors(kind: str, strategy: str) -> dict[str, object]:
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False}
    inputs = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _fp8_by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    return (weight / scales.float()).clamp(-448, 448).to(FP8), scales


def _fp8_by_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax().reshape(1) / 448
    return (weight / scale).to(FP8), scale


def _int8_by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round().to(torch.int8), scales


def _fp8_by_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(weight.shape, dtype=FP8)
    scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scales[i, j] = weight[here].abs().max() / 448
            codes[here] = (weight[here] / scales[i, j]).to(FP8)
    return codes, scales


FORMATS: dict[str, Format] = {
    "fp8-dynamic": Format(_compressed_tensors("float", "channel"), "weight_scale", _fp8_by_channel),
    "fp8-tensor": Format(_compressed_tensors("float", "tensor"), "weight_scale", _fp8_by_tensor),
    "int8": Format(_compressed_tensors("int", "channel"), "weight_scale", _int8_by_channel),
    "fp8-block": Format(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "weight_scale_inv",
        _fp8_by_block,
    ),
}


def float_weights() -> Tensors:
    """Every tensor of the model as it was before quantization: float32, of bfloat16 values."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in PROJECTIONS.items()}
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(0.02).bfloat16().float() for name, shape in shapes.items()
    }
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    return tensors | {f"{name}.weight": torch.ones(HIDDEN) for name in norms}


def write_quantized(folder: Path, name: str, *, plain: tuple[str, ...] = (), **config: object) -> Tensors:
    """A folder in one of the ``FORMATS``; the projections named ``plain`` are left as they are.

    Returns:
        The float weights that were stored.
    """
    kind = FORMATS[name]
    write_quantized_config(folder, name, **config)
    weights = float_weights()
    tensors: Tensors = {}
    for tensor_name, weight in weights.items():
        module = tensor_name.removesuffix(".weight")
        if module in PROJECTIONS and module not in plain:
            tensors[tensor_name], tensors[f"{module}.{kind.scale_name}"] = kind.store(weight)
        else:
            tensors[tensor_name] = weight.bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return weights


def write_quantized_config(folder: Path, name: str, **config: object) -> Path:
    """A folder with only the config.json of one of the ``FORMATS``."""
    changes = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "quantization_config": FORMATS[name].quantization_config,
        **config,
    }
    return write_config(folder, changes)
