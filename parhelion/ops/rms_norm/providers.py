"""What others offer for ``rms_norm``."""

from __future__ import annotations

import importlib

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider
from parhelion.ops.rms_norm.contract import RmsNorm
from parhelion.ops.vendor_provider import FlashInferProvider, VllmProvider, vllm_ops


class TorchRmsNorm(BaseProvider):
    """ATen's own kernels; on a CPU the shortest chain of them."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RmsNorm)
        return torch_rms_norm(contract.hidden_size, contract.epsilon, contract.dtype)


def torch_rms_norm(hidden_size: int, epsilon: float, dtype: torch.dtype) -> Launcher:
    """``rms_norm`` over the last dimension, computed in float32.

    ``F.rms_norm`` is one kernel on a GPU and seven on a CPU; by way of the Euclidean norm it is five, at two thirds of
    the time.
    """
    added = torch.tensor(epsilon)
    share = 1.0 / hidden_size

    def by_euclidean_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            return fused(x, weight)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.mul(x, weight).mul_(torch.addcmul(added, norm, norm, value=share).rsqrt_())

    def fused(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (hidden_size,), weight, epsilon)

    return by_euclidean_norm if dtype == torch.float32 else fused


class VllmRmsNorm(VllmProvider):
    """``_C.rms_norm``."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RmsNorm)
        rms_norm, epsilon = vllm_ops().rms_norm, contract.epsilon

        def launch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            y = torch.empty_like(x)
            rms_norm(y, x, weight, epsilon)
            return y

        return launch


class FlashInferRmsNorm(FlashInferProvider):
    """``flashinfer.norm.rmsnorm``."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RmsNorm)
        rmsnorm, epsilon = importlib.import_module("flashinfer.norm").rmsnorm, contract.epsilon
        return lambda x, weight: rmsnorm(x, weight, epsilon)
