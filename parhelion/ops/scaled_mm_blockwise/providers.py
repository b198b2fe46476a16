"""What others offer for ``scaled_mm_blockwise``."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider, missing_package, needs_cuda
from parhelion.ops.scaled_mm_blockwise.contract import ScaledMmBlockwise

_BLOCK = 128
_TOKENS_MULTIPLE = 4


class _BlockwiseProvider(BaseProvider):
    """What these libraries have in common: blocks of 128, bfloat16, no bias."""

    in_multiple: int = _BLOCK
    out_multiple: int = _BLOCK

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, ScaledMmBlockwise)
        if contract.block != _BLOCK:
            return f"it takes blocks of {_BLOCK}, not {contract.block}"
        if contract.dtype != torch.bfloat16:
            return f"it makes bfloat16, not {str(contract.dtype).removeprefix('torch.')}"
        if contract.bias:
            return "it adds no bias"
        if contract.in_features % self.in_multiple:
            return f"it takes in_features that are multiples of {self.in_multiple}, not {contract.in_features}"
        if contract.out_features % self.out_multiple:
            return f"it takes out_features that are multiples of {self.out_multiple}, not {contract.out_features}"
        return None


def _why_not_hopper(device: torch.device) -> str | None:
    """None on compute capability 9.0; else why not."""
    why_not = needs_cuda(device, (9, 0))
    if why_not is None and (found := torch.cuda.get_device_capability(device)) != (9, 0):
        return f"it needs compute capability 9.0, and this GPU has {found[0]}.{found[1]}"
    return why_not


class TorchScaledMmBlockwise(_BlockwiseProvider):
    """ATen: ``_scaled_mm`` with 1 x 128 and 128 x 128 blocks (cuBLASLt 12.9 or later, Hopper only).

    It wants the activations' scales with the tokens next to each other, so a transposed copy of them is made each time;
    the weight's scales, with their groups padded to a multiple of four, are packed once by ``bind``. Tokens are padded
    to a multiple of four too: with others cuBLASLt has no algorithm.
    """

    name = "torch"
    in_multiple = 16
    out_multiple = 16

    def why_not(self, device: torch.device) -> str | None:
        return _why_not_hopper(device)

    def launcher(self, contract: Contract) -> Launcher:
        def launch(
            codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> torch.Tensor:
            return _scaled_mm(codes, scales, weight, _padded_scales(weight_scales))

        return launch

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        weight, weight_scales = weights
        packed = _padded_scales(weight_scales)
        return lambda codes, scales: _scaled_mm(codes, scales, weight, packed)


def _scaled_mm(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, padded_scales: torch.Tensor
) -> torch.Tensor:
    functional: Any = torch.nn.functional
    kinds = functional.ScalingType
    num_tokens = codes.size(0)
    missing = -num_tokens % _TOKENS_MULTIPLE
    y: torch.Tensor = functional.scaled_mm(
        functional.pad(codes.view(torch.uint8), (0, 0, 0, missing)).view(codes.dtype) if missing else codes,
        weight.t(),
        scale_a=_tokens_adjacent(functional.pad(scales, (0, 0, 0, missing)) if missing else scales),
        scale_recipe_a=kinds.BlockWise1x128,
        scale_b=padded_scales,
        scale_recipe_b=kinds.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return y[:num_tokens]


def _tokens_adjacent(scales: torch.Tensor) -> torch.Tensor:
    """The same [M, G] with strides (1, M), even where M or G is 1 and torch would call any strides contiguous."""
    num_tokens, groups = scales.shape
    return scales.new_empty_strided((num_tokens, groups), (1, num_tokens)).copy_(scales)


def _padded_scales(weight_scales: torch.Tensor) -> torch.Tensor:
    """[N / 128, K / 128] to [K / 128, rounded up to fours, N / 128], with the groups of K next to each other."""
    groups = weight_scales.size(1)
    return torch.nn.functional.pad(weight_scales, (0, -groups % 4)).contiguous().t()


class DeepGemmScaledMmBlockwise(_BlockwiseProvider):
    """DeepGEMM's ``fp8_gemm_nt`` (Hopper: float32 scales; it lays the activations' scales out itself, each time)."""

    name = "deep_gemm"
    out_multiple = 64

    def why_not(self, device: torch.device) -> str | None:
        return _why_not_hopper(device) or missing_package("deep_gemm")

    def launcher(self, contract: Contract) -> Launcher:
        import deep_gemm

        def launch(
            codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> torch.Tensor:
            y = codes.new_empty((codes.size(0), weight.size(0)), dtype=torch.bfloat16)
            # These scales are not powers of two; the cast would make them so.
            deep_gemm.fp8_gemm_nt((codes, scales), (weight, weight_scales), y, disable_ue8m0_cast=True)
            return y

        return launch


class FlashInferScaledMmBlockwise(_BlockwiseProvider):
    """FlashInfer's ``fp8_blockscale_gemm_sm90``, which came from TensorRT-LLM and swaps operands itself for small M."""

    name = "flashinfer"
    out_multiple = 64

    def why_not(self, device: torch.device) -> str | None:
        return _why_not_hopper(device) or missing_package("flashinfer")

    def launcher(self, contract: Contract) -> Launcher:
        from flashinfer.gemm import fp8_blockscale_gemm_sm90

        def launch(
            codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> torch.Tensor:
            y: torch.Tensor = fp8_blockscale_gemm_sm90(
                codes, weight, input_scale=scales, weight_scale=weight_scales, out_dtype=torch.bfloat16
            )
            return y

        return launch


class VllmScaledMmBlockwise(_BlockwiseProvider):
    """vLLM's CUTLASS kernel (``torch.ops._C.cutlass_scaled_mm`` with block scales), for comparison.

    On Hopper it wants the activations' scales with the tokens next to each other: a transposed copy each time.
    """

    name = "vllm"

    def why_not(self, device: torch.device) -> str | None:
        return _why_not_hopper(device) or missing_package("vllm")

    def launcher(self, contract: Contract) -> Launcher:
        import vllm._C  # noqa: F401  (registers the ops)

        scaled_mm: Any = torch.ops._C.cutlass_scaled_mm

        def launch(
            codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> torch.Tensor:
            y = codes.new_empty((codes.size(0), weight.size(0)), dtype=torch.bfloat16)
            scaled_mm(y, codes, weight.t(), _tokens_adjacent(scales), weight_scales.t(), None)
            return y

        return launch
