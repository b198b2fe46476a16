"""``all_reduce_rms_norm``: the sum over the ranks, added to the residual and normalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, rounded, wide
from parhelion.ops.fused_add_rms_norm.contract import FusedAddRmsNorm
from parhelion.ops.quantize import per_token_quantized
from parhelion.ops.rms_norm.contract import normalized
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import RmsNormDynamicPerTokenQuant, sample_norm_inputs

FLIPS = 0.1
"""Share of codes that may be one step off: a sum that is rounded to bfloat16 before the residual is added to it moves
5% of int8's."""


@dataclass(frozen=True)
class AllReduceRmsNorm(Contract):
    """``all_reduce`` of hidden, then ``fused_add_rms_norm`` of the sum or, if ``quant_dtype``, the norm with its output
    quantized per row. Every rank of torch's default process group must call it, with the same residual and weight.

    Inputs: hidden [M, hidden_size], this rank's part of the sum, residual [M, hidden_size], weight [hidden_size], all
    of ``dtype``; hidden may be written to.
    Outputs: y [M, hidden_size] of ``dtype`` or, if ``quant_dtype``, codes [M, hidden_size] and scales [M, 1] float32
    (see ``ops/quantize.py``); then the new residual, rounded to ``dtype`` before the norm reads it, in place. They are
    the same on all ranks.
    """

    hidden_size: int
    num_ranks: int
    epsilon: float = 1e-6
    dtype: torch.dtype = torch.bfloat16
    quant_dtype: torch.dtype | None = None

    name: ClassVar[str] = "all_reduce_rms_norm"
    mutated: ClassVar[tuple[int, ...]] = (1,)
    num_weights: ClassVar[int] = 1
    instead: ClassVar[str] = "torch"

    @property
    def own_part(self) -> Contract:
        """What is left of it for a rank alone."""
        if self.quant_dtype is None:
            return FusedAddRmsNorm(self.hidden_size, self.epsilon, self.dtype)
        return RmsNormDynamicPerTokenQuant(
            self.hidden_size, self.epsilon, self.dtype, self.quant_dtype, add_residual=True
        )

    @property
    def outputs(self) -> tuple[Output, ...]:  # type: ignore[override]  # depends on quant_dtype
        # Partial sums may be rounded to bfloat16 on their way around the ranks.
        residual = Output("residual", relative=8e-3)
        if self.quant_dtype is None:
            return Output("y", relative=8e-3), residual
        codes = Output("codes", relative=4e-2, scales=1, max_flips=FLIPS)
        return codes, Output("scales", relative=8e-3), residual

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return sample_norm_inputs(num_tokens, self.hidden_size, True, self.dtype, device, generator)

    def reference(self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
        """All parts are gathered, added in the order of the ranks and to the residual, and rounded once."""
        parts = [hidden]
        if self.num_ranks > 1:
            parts = [torch.empty_like(hidden) for _ in range(self.num_ranks)]
            dist.all_gather(parts, hidden.contiguous())
        total = rounded(sum((wide(part) for part in parts), wide(residual)), self.dtype)
        normed = normalized(wide(total), wide(weight), self.epsilon)
        if self.quant_dtype is None:
            return rounded(normed, self.dtype), total
        return (*per_token_quantized(normed, self.quant_dtype), total)

    def traffic(self, num_tokens: int) -> Traffic:
        """Of this rank's memory: what the links take is the planner's (``parhelion.distributed.collectives``)."""
        elements = num_tokens * self.hidden_size
        written = self.dtype.itemsize if self.quant_dtype is None else self.quant_dtype.itemsize
        moved = (3 * elements + self.hidden_size) * self.dtype.itemsize + elements * written
        return Traffic(moved, (6 + self.num_ranks) * elements)
