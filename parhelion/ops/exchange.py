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

import ctypes

import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting

_INBOX = "tl.multiple_of(tl.load({0} + {1}).to(tl.pointer_type(tl.int64)), 16)"

_SEND = f"tl.store({_INBOX} + {{2}}, {{3}}, mask={{4}})"

_WAIT = f"""
inbox = {_INBOX}
exchanged = tl.load(inbox + {{2}}, mask={{3}}, other=0, volatile=True)
while tl.max(({{3}} & ((exchanged >> 32).to(tl.int32) != {{4}})).to(tl.int32)) != 0:
    exchanged = tl.load(inbox + {{2}}, mask={{3}}, other=0, volatile=True)
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


def send(addresses: torch.Tensor, inbox: int, place: torch.Tensor, words: torch.Tensor, is_real: torch.Tensor) -> None:
    """Write those words that are real to these places behind an inbox's address.

    Helion has tensors by their addresses (``hl.stacktensor_like``), but not in its interpreter; and Triton's launcher
    takes no tensor of symmetric memory.
    """
    if not interpreting():
        hl.inline_triton(_SEND, args=(addresses, inbox, place, words, is_real), output_like=None)
        return
    for word, value in zip(_words(addresses, inbox, place[is_real]), words[is_real].tolist(), strict=True):
        word.value = value


def received(
    addresses: torch.Tensor,
    inbox: int,
    place: torch.Tensor,
    is_real: torch.Tensor,
    turn: torch.Tensor,
    like: torch.Tensor,
) -> torch.Tensor:
    """Wait until the words at these places have their turn; 0 where they are not real. ``like``: other words."""
    if not interpreting():
        return hl.inline_triton(_WAIT, args=(addresses, inbox, place, is_real, turn), output_like=like)
    # Nobody writes meanwhile.
    found = torch.zeros_like(like)
    found[is_real] = torch.tensor([word.value for word in _words(addresses, inbox, place[is_real])])
    return found


def _words(addresses: torch.Tensor, inbox: int, place: torch.Tensor) -> list[ctypes.c_int64]:
    """In this process's memory."""
    return [ctypes.c_int64.from_address(int(addresses[inbox]) + 8 * index) for index in place.tolist()]
