"""The memory-bound ops between the matrix products, as a set: torch's own, or fused by TorchInductor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from parhelion.ops.provider import Availability
from parhelion.ops.rotary_embedding import rotary_embedding
from parhelion.ops.silu_and_mul import silu_and_mul
from parhelion.platform.compiler import cpp_compiler


@dataclass(frozen=True)
class ElementwiseOps:
    """One implementation of each; the signatures are those of the ops' own modules.

    Attributes:
        name: as shown to users.
    """

    name: str
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    fused_add_rms_norm: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
    rotary_embedding: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    silu_and_mul: Callable[[torch.Tensor], torch.Tensor]


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


def torch_ops() -> ElementwiseOps:
    """One torch kernel after the other; nothing to compile."""
    return ElementwiseOps("torch", rms_norm, fused_add_rms_norm, rotary_embedding, silu_and_mul)


def inductor_ops() -> ElementwiseOps:
    """The same functions through ``torch.compile``: each becomes one loop. They compile at their first calls, once for
    a single token and once for any other number of them.
    """
    return ElementwiseOps(
        "inductor",
        torch.compile(rms_norm, dynamic=True, fullgraph=True),
        torch.compile(fused_add_rms_norm, dynamic=True, fullgraph=True),
        torch.compile(rotary_embedding, dynamic=True, fullgraph=True),
        torch.compile(silu_and_mul, dynamic=True, fullgraph=True),
    )


def inductor_unavailable() -> str | None:
    """Why TorchInductor cannot compile for this CPU; None if it can."""
    if cpp_compiler() is None:
        return "no C++ compiler was found: install g++ or clang++"
    return None


def provider_report() -> list[Availability]:
    """The two sets and whether they can serve here."""
    why_not = inductor_unavailable()
    return [
        Availability("elementwise", "torch", True, "eager kernels"),
        Availability("elementwise", "inductor", why_not is None, why_not or "fused loops, with --compile"),
    ]
