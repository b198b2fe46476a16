"""What a model makes of every position of a text, for comparing: a prompt through it, with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention


def prompt_logits(model: DecoderModel, token_ids: Sequence[int], block_size: int) -> torch.Tensor:
    """Logits after each token, [len(token_ids), vocab_size] float32 on the model's device; see ``prompt_states``."""
    with torch.inference_mode():
        return model.compute_logits(prompt_states(model, token_ids, block_size)).float()


def prompt_states(model: DecoderModel, token_ids: Sequence[int], block_size: int) -> torch.Tensor:
    """What the output head is given after each token, [len(token_ids), hidden_size] in the activations' dtype.

    Args:
        model: with its weights.
        token_ids: at most as many as the model was built for.
        block_size: that the model was built with.
    """
    device, config, count = model.device, model.config, len(token_ids)
    num_blocks = -(-count // block_size)
    shape = (num_blocks, block_size, 2 * config.num_kv_heads, config.head_dim)
    kv_cache = [torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(config.num_layers)]
    windows = frozenset(config.sliding_window(layer) for layer in range(config.num_layers))
    cpu_plan = None
    if device.type == "cpu":
        cpu_plan = plan_cpu_attention(np.arange(num_blocks)[None], [0], [count], block_size, windows, model.dtype)
    positions = torch.arange(count, device=device)
    attention = AttentionBatch(
        block_table=torch.arange(num_blocks, dtype=torch.int32, device=device)[None],
        seq_lens=torch.tensor([count], dtype=torch.int32, device=device),
        query_start_loc=torch.tensor([0, count], dtype=torch.int32, device=device),
        max_query_len=count,
        max_seq_len=count,
        cpu=cpu_plan,
    )
    ids = torch.tensor(token_ids, dtype=torch.int64, device=device)
    with torch.inference_mode():
        return model.forward(StepBatch(ids, positions, positions, attention), kv_cache)
