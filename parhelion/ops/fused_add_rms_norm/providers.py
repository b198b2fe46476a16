"""What others offer for ``fused_add_rms_norm``."""

from __future__ import annotations

import importlib

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.fused_add_rms_norm.contract import FusedAddRmsNorm
from parhelion.ops.provider import BaseProvider
from parhelion.ops.rms_norm.providers import torch_rms_norm
from parhelion.ops.vendor_provider import FlashInferProvider, VllmProvider, vllm_ops


class TorchFusedAddRmsNorm(BaseProvider):
    """ATen's addition in place, then ATen's norm."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, FusedAddRmsNorm)
        rms_norm = torch_rms_norm(contract.hidden_size, contract.epsilon, contract.dtype)

        def launch(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
            residual.add_(x)
            return rms_norm(residual, weight), residual

        return launch


class VllmFusedAddRmsNorm(VllmProvider):
    """``_C.fused_add_rms_norm``, which writes y over x: it gets a copy of x, and the copy's time counts."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, FusedAddRmsNorm)
        return _in_place(vllm_ops().fused_add_rms_norm, contract.epsilon)


class FlashInferFusedAddRmsNorm(FlashInferProvider):
    """``flashinfer.norm.fused_add_rmsnorm``, which writes y over x: it gets a copy of x, and the copy's time counts."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, FusedAddRmsNorm)
        return _in_place(importlib.import_module("flashinfer.norm").fused_add_rmsnorm, contract.epsilon)


def _in_place(function: Launcher, epsilon: float) -> Launcher:
    def launch(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
        y = x.clone()
        function(y, residual, weight, epsilon)
        return y, residual

    return launch
