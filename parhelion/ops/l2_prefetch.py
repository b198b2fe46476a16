"""Asking for memory to be brought into the L2 cache, without waiting for it and without registers for it.

NVIDIA GPUs have an instruction for that (PTX ISA, "prefetch"). Traced into tile programs, for launches that are
programmatic: those are only made where there is one.
"""

from __future__ import annotations

import helion.language as hl
import torch

_PREFETCH = (
    "tl.inline_asm_elementwise('prefetch.global.L2 [$1]; mov.u32 $0, 0;', '=r,l', [{0} + {1}], "
    "dtype=tl.int32, is_pure=False, pack=1)"
)


def prefetch(tensor: torch.Tensor, offsets: torch.Tensor) -> None:
    """Ask for the lines of 128 bytes in which these elements of a contiguous tensor lie."""
    hl.inline_triton(_PREFETCH, args=(tensor, offsets), output_like=None)
