"""``embedding`` as a tile program: a program copies a part of one token's row."""

from __future__ import annotations

import functools
from typing import Any

import helion
import helion.language as hl
import torch

from parhelion.ops.embedding.contract import Embedding
from parhelion.ops.helion_provider import Runner


@helion.kernel(static_shapes=False)
def embedding(token_ids: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor) -> None:
    num_tokens, hidden_size = hidden.size()
    hidden_size = hl.specialize(hidden_size)
    for tile_m, tile_h in hl.tile([num_tokens, hidden_size], block_size=[1, None]):
        token_id = token_ids[tile_m.begin]
        hidden[tile_m.begin, tile_h] = weight[token_id, tile_h]


def launch(contract: Embedding, run: Runner, token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See ``Embedding``."""
    hidden = weight.new_empty((token_ids.shape[0], contract.hidden_size))
    run(embedding, _config(min(2048, 1 << (contract.hidden_size - 1).bit_length())), token_ids, weight, hidden)
    return hidden


@functools.lru_cache
def _config(elements: int) -> Any:
    return helion.Config(
        block_sizes=[elements], loop_orders=[[1, 0]], num_warps=max(1, min(4, elements // 512)), num_stages=1
    )
