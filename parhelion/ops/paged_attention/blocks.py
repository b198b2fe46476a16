"""Where a row's tokens lie among its blocks; traced into tile programs. Division of what may be negative takes five
instructions, a shift one.
"""

from __future__ import annotations

import torch


def block_of(token: torch.Tensor, block_size: int) -> torch.Tensor:
    """The number of a token's block among its row's."""
    return token >> (block_size.bit_length() - 1) if block_size & (block_size - 1) == 0 else token // block_size


def place_in_block(token: torch.Tensor, block_size: int) -> torch.Tensor:
    """A token's place in its block."""
    return token & (block_size - 1) if block_size & (block_size - 1) == 0 else token % block_size
