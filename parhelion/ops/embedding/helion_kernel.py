"""``embedding`` as a tile program: a program copies a part of one token's row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor


@helion.kernel(static_shapes=False)
def embedding(token_ids: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor, programmatic: hl.constexpr) -> None:
    num_tokens, hidden_size = hidden.size()
    hidden_size = hl.specialize(hidden_size)
    for tile_m, tile_h in hl.tile([num_tokens, hidden_size], block_size=[1, None]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        token_id = token_ids[tile_m.begin]
        hidden[tile_m.begin, tile_h] = weight[token_id, tile_h]
