"""What ATen, oneDNN and FBGEMM offer for ``linear``; the last two serve CPUs and pack the weight once, at load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.linear.contract import Linear
from parhelion.ops.provider import BaseProvider

TOKENS_HINT = 16
"""For how many tokens oneDNN is to choose its layout; it serves any number of them."""


class TorchLinear(BaseProvider):
    """``torch.nn.functional.linear``: on every device, in every dtype."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        return F.linear


class PackingLinear(BaseProvider, ABC):
    """What the providers below have in common: a CPU, float32 activations, a weight that is packed when it is bound."""

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it serves CPUs, and this is {device.type}"
        return self.missing() or try_out(self)

    @abstractmethod
    def missing(self) -> str | None:
        """What this build of torch lacks, or None."""

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, Linear)
        if contract.dtype == torch.float32:
            return None
        return f"its activations are float32, not {str(contract.dtype).removeprefix('torch.')}"

    def launcher(self, contract: Contract) -> Launcher:
        """Packs at every call: for checks. What serves is bound."""
        return lambda x, *weights: self.bind(contract, *weights)(x)


class OneDnnLinear(PackingLinear):
    """oneDNN with the weight reordered once into its blocked layout, all in float32."""

    name = "onednn"

    def missing(self) -> str | None:
        return None if torch.backends.mkldnn.is_available() else "this build of torch has no oneDNN"

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        weight, bias = _weight_and_bias(*weights)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TOKENS_HINT)
        run = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: run(x, packed, bias, "none", [], "")


class FbgemmHalfLinear(PackingLinear):
    """FBGEMM with float16 weights and float32 arithmetic: half the memory traffic, no rounding of activations.

    Serves float32 contracts: rounding the weight to float16, 2^-12 of its values or less, is well within their bounds.
    """

    name = "fbgemm_fp16"

    def missing(self) -> str | None:
        if "fbgemm" in torch.backends.quantized.supported_engines:
            return None
        return "this build of torch has no FBGEMM (x86-64 with AVX2 only)"

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        weight, bias = _weight_and_bias(*weights)
        largest = float(weight.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise ConfigError(f"a weight of {largest:g} does not fit float16; pass dtype float32")
        packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
        run = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x: run(x, packed)


def try_out(provider: BaseProvider) -> str | None:
    """Run a provider on a small problem in float32: None if it agrees with float64, else what went wrong."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator)
    x = torch.randn(3, 32, generator=generator)
    try:
        y = provider.bind(Linear(32, 48, torch.float32), weight)(x)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"it failed a small problem: {str(error).splitlines()[0][:120]}"
    wrong = (y.double() - x.double() @ weight.double().t()).abs().max().item()
    return None if wrong < 0.05 else f"it is off by {wrong:g} on a small problem"


def _weight_and_bias(
    weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return weight, bias


def one_token_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [1, K] float32 by weight [N, K] of any float dtype to [1, N] float32, as a formula for TorchInductor.

    It becomes one pass over the weight, which is widened in registers. Eagerly it would be slow.
    """
    y = (weight.float() * x).sum(-1)[None]
    return y if bias is None else y + bias.float()
