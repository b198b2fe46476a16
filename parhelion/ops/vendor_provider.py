"""Bases of the adapters to vLLM's and FlashInfer's kernels: the probe, and the import put off until one is wanted."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from parhelion.ops.contract import Contract
from parhelion.ops.provider import BaseProvider, missing_package, needs_cuda


class VllmProvider(BaseProvider):
    """vLLM's own CUDA ops, for comparison; called through ``vllm._custom_ops``, which loads them."""

    name = "vllm"

    def why_not(self, device: torch.device) -> str | None:
        return needs_cuda(device) or missing_package("vllm")


class FlashInferProvider(BaseProvider):
    """FlashInfer's CUDA kernels; it compiles each at its first use."""

    name = "flashinfer"

    def why_not(self, device: torch.device) -> str | None:
        return needs_cuda(device, (7, 5)) or missing_package("flashinfer")

    def refuses(self, contract: Contract) -> str | None:
        dtype = getattr(contract, "dtype", None)
        return None if dtype in (torch.float16, torch.bfloat16) else f"it takes float16 and bfloat16, not {dtype}"


def vllm_ops() -> ModuleType:
    """The module ``vllm._custom_ops``."""
    return importlib.import_module("vllm._custom_ops")
