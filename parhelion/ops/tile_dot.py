"""Matrix products of tiles, traced into tile programs: the one place that knows what the interpreter cannot do."""

from __future__ import annotations

import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting


def dot(a: torch.Tensor, b: torch.Tensor, sums: torch.Tensor | None = None) -> torch.Tensor:
    """a [R, K] @ b [K, C], added to ``sums`` [R, C] if there are any; in their dtype, else in float32."""
    if interpreting():
        # hl.dot is interpreted by torch functions that CPUs have not.
        dtype = torch.float32 if sums is None else sums.dtype
        product = a.to(dtype) @ b.to(dtype)
        return product if sums is None else sums + product
    return hl.dot(a, b, acc=sums)
