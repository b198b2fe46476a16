"""``rms_norm`` and ``fused_add_rms_norm`` (Zhang and Sennrich, 2019), computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x [..., hidden] divided by the root mean square of its last dimension, times weight [hidden]; x's dtype."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, epsilon)
    return (F.rms_norm(x.float(), (x.shape[-1],), None, epsilon) * weight.float()).to(x.dtype)


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``residual += x`` in place, then its ``rms_norm``. Returns (normed, residual), each [..., hidden]."""
    residual += x
    return rms_norm(residual, weight, epsilon), residual
