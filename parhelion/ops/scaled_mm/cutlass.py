"""What CUTLASS offers for ``scaled_mm``, through its Operator API."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.cutlass_operators import (
    CutlassGemm,
    Epilogue,
    can_ask,
    current_target,
    find_operators,
    gemm_arguments,
    why_not_cutlass,
    wrong_sizes,
)
from parhelion.ops.provider import BaseProvider
from parhelion.ops.scaled_mm.contract import ScaledMm

_SCALE = "def epilogue(accum, scales, weight_scales):\n    D = accum * scales * weight_scales\n    return D\n"
_SCALE_AND_ADD = (
    "def epilogue(accum, scales, weight_scales, bias):\n    D = accum * scales * weight_scales + bias\n    return D\n"
)
_TOKENS_MULTIPLE = 4


class CutlassScaledMm(BaseProvider):
    """CUTLASS through its Operator API; it compiles each contract at its first calls.

    For FP8 on Blackwell the scales and the bias are applied within the kernel, with tokens padded to a multiple of four
    because that reads their scales in lines of 16 bytes. Version 0.3.0 has no such epilogue for Hopper, and for INT8
    none at all: there the sums are stored in float32 or int32, and two elementwise kernels of torch make the result of
    them. ``torch`` and ``vllm`` reach kernels of CUTLASS, written in C++, that fuse this on Hopper too.
    """

    name = "cutlass"

    def why_not(self, device: torch.device) -> str | None:
        return why_not_cutlass(device)

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, ScaledMm)
        wrong = wrong_sizes(contract.in_features, contract.out_features, contract.quant_dtype)
        if wrong is not None or not can_ask():
            return wrong
        if _fuses(contract) or find_operators(_sums(contract, *_without_storage(contract))[0], current_target()):
            return None
        dtype = str(contract.quant_dtype).removeprefix("torch.")
        return f"CUTLASS has no operator for {dtype} on sm_{current_target()}"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, ScaledMm)
        gemm = CutlassGemm.on_current_device()
        return _launch_fused(contract, gemm) if _fuses(contract) else _launch_in_two_steps(contract, gemm)


def _launch_fused(contract: ScaledMm, gemm: CutlassGemm) -> Launcher:
    def launch(
        codes: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        num_tokens = codes.size(0)
        if missing := -num_tokens % _TOKENS_MULTIPLE:
            # As bytes: not every build of torch pads FP8.
            codes = F.pad(codes.view(torch.uint8), (0, 0, 0, missing)).view(codes.dtype)
            scales = F.pad(scales, (0, 0, 0, missing))
        y = codes.new_empty((codes.size(0), weight.size(0)), dtype=contract.dtype)
        gemm.run(gemm_arguments(codes, weight, y, torch.float32, _epilogue(scales, weight_scales, bias)))
        return y[:num_tokens]

    return launch


def _launch_in_two_steps(contract: ScaledMm, gemm: CutlassGemm) -> Launcher:
    def launch(
        codes: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        arguments, sums = _sums(contract, codes, weight)
        gemm.run(arguments)
        scaled, row = sums * scales, weight_scales.view(1, -1)
        y = sums.new_empty(sums.shape, dtype=contract.dtype)
        return torch.mul(scaled, row, out=y) if bias is None else torch.addcmul(bias, scaled, row, out=y)

    return launch


def _epilogue(scales: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor | None) -> Epilogue:
    # With strides (1, M), or the API cannot tell which dimension is the one of tokens.
    tensors = {"scales": scales.view(1, -1).t(), "weight_scales": weight_scales.view(-1)}
    return Epilogue(_SCALE, tensors) if bias is None else Epilogue(_SCALE_AND_ADD, {**tensors, "bias": bias})


def _sums(contract: ScaledMm, codes: torch.Tensor, weight: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """What describes the product of the codes alone, and the [M, N] that it is stored in."""
    accumulator = torch.int32 if contract.quant_dtype == torch.int8 else torch.float32
    sums = codes.new_empty((codes.size(0), weight.size(0)), dtype=accumulator)
    return gemm_arguments(codes, weight, sums, accumulator), sums


def _fuses(contract: ScaledMm) -> bool:
    """Whether an operator for the current GPU has the epilogue."""
    if contract.quant_dtype == torch.int8:
        return False  # The API raises on an epilogue of int32 sums.
    codes, weight = _without_storage(contract)
    y = codes.new_empty((codes.size(0), weight.size(0)), dtype=contract.dtype)
    scales, weight_scales = y.new_empty(y.size(0), 1, dtype=torch.float32), y.new_empty(y.size(1), dtype=torch.float32)
    epilogue = _epilogue(scales, weight_scales, y.new_empty(y.size(1)) if contract.bias else None)
    return bool(find_operators(gemm_arguments(codes, weight, y, torch.float32, epilogue), current_target()))


def _without_storage(contract: ScaledMm) -> Tensors:
    """Codes and a weight on the device ``meta``; which operators there are does not depend on M."""
    num_tokens, k, n = 64, contract.in_features, contract.out_features
    return tuple(torch.empty(rows, k, dtype=contract.quant_dtype, device="meta") for rows in (num_tokens, n))
