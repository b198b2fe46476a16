"""Draft models made of a target: the same checkpoint with layers left out, which agrees with it more or less often."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file

from parhelion.models.checkpoint import open_checkpoint

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def leave_out_layers(target: Path, layers: Collection[int], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint's other layers, and everything else of it, to a folder.

    Args:
        target: a folder of a Llama in safetensors, or its ``.gguf`` file.
        layers: indices of those that are left out.
        folder: made if need be.
        dtype: that the weights are written in.
    """
    with open_checkpoint(target) as checkpoint:
        config = checkpoint.config
        kept = [layer for layer in range(config.num_layers) if layer not in layers]
        tensors = {}
        for name in checkpoint.names():
            match = _LAYER.fullmatch(name)
            if match is None:
                tensors[name] = checkpoint.tensor(name).to(dtype).contiguous()
            elif int(match[1]) in kept:
                place = kept.index(int(match[1]))
                tensors[f"model.layers.{place}.{match[2]}"] = checkpoint.tensor(name).to(dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": len(kept),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": config.hidden_act,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    (folder / "config.json").write_text(json.dumps(described))
    return folder
