"""Rows that ranks hand to each other inside a kernel: every rank writes into the others' memory and waits for theirs.

Each rank has an inbox, which all ranks can write to (symmetric memory). What is sent are words of eight bytes: four of
data and four that say whose turn it is, the number of times that the row has been exchanged. Eight bytes are written at
once, so whoever sees the turn has the data, and no fence and no second message is needed (the idea of NCCL's
low-latency protocol). An inbox has two places for a row, which take turns: a rank is at most one exchange ahead of the
slowest, since it cannot finish one before all ranks have begun it.

Functions are traced into tile programs. A word holds two elements of 16 bits, one of each half of a row, so that no
element changes threads.
"""

from __future__ import annotations

import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting

_WAIT = """
exchanged = tl.load({0} + {1}, mask={2}, other=0, volatile=True)
while tl.max(({2} & ((exchanged >> 32).to(tl.int32) != {3})).to(tl.int32)) != 0:
    exchanged = tl.load({0} + {1}, mask={2}, other=0, volatile=True)
exchanged
"""


def packed(low: torch.Tensor, high: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Words int64 of two tiles of 16-bit elements and the row's turn, int32."""
    pair = (low.view(torch.int16).to(torch.int32) & 0xFFFF) | (high.view(torch.int16).to(torch.int32) << 16)
    return (pair.to(torch.int64) & 0xFFFFFFFF) | (turn.to(torch.int64) << 32)


def low_of(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The first of ``packed``, in float32."""
    return words.to(torch.int16).view(dtype).to(torch.float32)


def high_of(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The second of ``packed``, in float32."""
    return (words >> 16).to(torch.int16).view(dtype).to(torch.float32)


def received(
    inbox: torch.Tensor, place: torch.Tensor, is_real: torch.Tensor, turn: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """Wait until the words at these places have their turn; 0 where they are not real. ``like``: other words."""
    if interpreting():
        # Nobody writes meanwhile.
        return hl.load(inbox, [place], extra_mask=is_real)
    return hl.inline_triton(_WAIT, args=(inbox, place, is_real, turn), output_like=like)
