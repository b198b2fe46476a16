"""What others offer for ``scaled_mm``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider, missing_package, needs_cuda
from parhelion.ops.scaled_mm.contract import ScaledMm

_INT_MM_LEAST_ROWS = 17


class TorchScaledMm(BaseProvider):
    """ATen: FP8 by ``_scaled_mm`` with row-wise scales (cuBLASLt or CUTLASS), INT8 by ``_int_mm`` and an epilogue."""

    name = "torch"

    def why_not(self, device: torch.device) -> str | None:
        return needs_cuda(device, (8, 0))

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, ScaledMm)
        multiple = 8 if contract.quant_dtype == torch.int8 else 16
        if contract.in_features % multiple or contract.out_features % multiple:
            dims = f"{contract.in_features} and {contract.out_features}"
            return f"it takes in_features and out_features that are multiples of {multiple}, not {dims}"
        if contract.quant_dtype == torch.float8_e4m3fn:
            if contract.dtype == torch.float32 and contract.bias:
                return "it adds no bias to a float32 result"
            if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
                return "FP8 needs compute capability 8.9"
        return None

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, ScaledMm)
        return _launch_int8(contract) if contract.quant_dtype == torch.int8 else _launch_fp8(contract)


def _launch_fp8(contract: ScaledMm) -> Launcher:
    dtype = contract.dtype

    def launch(
        codes: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Row-major by column-major; [N, 1] read as [1, N] is contiguous. Fast accumulation keeps a Hopper's sums in the
        # tensor core, as the tile program does; without it they are promoted to float32 every few steps.
        return torch._scaled_mm(
            codes,
            weight.t(),
            scale_a=scales,
            scale_b=weight_scales.view(1, -1),
            bias=bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )

    return launch


def _launch_int8(contract: ScaledMm) -> Launcher:
    dtype = contract.dtype

    def launch(
        codes: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        num_tokens = codes.size(0)
        if num_tokens < _INT_MM_LEAST_ROWS:
            # It refuses 16 rows or fewer.
            codes = F.pad(codes, (0, 0, 0, _INT_MM_LEAST_ROWS - num_tokens))
        sums = torch._int_mm(codes, weight.t())[:num_tokens]
        y = sums * scales * weight_scales.view(1, -1)
        return (y if bias is None else y + bias).to(dtype)

    return launch


class VllmScaledMm(BaseProvider):
    """vLLM's CUTLASS kernel (``torch.ops._C.cutlass_scaled_mm``), for comparison."""

    name = "vllm"

    def why_not(self, device: torch.device) -> str | None:
        return needs_cuda(device, (8, 0)) or missing_package("vllm")

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, ScaledMm)
        if contract.in_features % 16 or contract.out_features % 16:
            dims = f"{contract.in_features} and {contract.out_features}"
            return f"it takes in_features and out_features that are multiples of 16, not {dims}"
        if contract.dtype == torch.float32:
            return "it makes bfloat16 or float16, not float32"
        return None

    def launcher(self, contract: Contract) -> Launcher:
        import vllm._C  # noqa: F401  (registers the ops)

        assert isinstance(contract, ScaledMm)
        scaled_mm: Any = torch.ops._C.cutlass_scaled_mm
        dtype = contract.dtype

        def launch(
            codes: torch.Tensor,
            scales: torch.Tensor,
            weight: torch.Tensor,
            weight_scales: torch.Tensor,
            bias: torch.Tensor | None = None,
        ) -> torch.Tensor:
            y = codes.new_empty((codes.size(0), weight.size(0)), dtype=dtype)
            scaled_mm(y, codes, weight.t(), scales, weight_scales, bias)
            return y

        return launch
