"""Ways to compute a linear layer that pack its weight once, at load; the hot path only calls what they return.

All of them serve CPUs; ``TorchLinear`` serves every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from parhelion.errors import ConfigError
from parhelion.ops import contract as contracts
from parhelion.ops.contract import Contract
from parhelion.ops.linear.contract import Linear
from parhelion.ops.provider import Availability, BaseProvider

Launcher = Callable[[torch.Tensor], torch.Tensor]
"""[M, K] activations to [M, N], in the provider's activation dtype."""


class Provider(Protocol):
    """One implementation of ``linear``.

    Attributes:
        name: as shown to users.
        weight_dtype: how the weight is stored.
        activation_dtype: of x and of the result.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight_dtype(self) -> torch.dtype: ...

    @property
    def activation_dtype(self) -> torch.dtype: ...

    def probe(self) -> str | None:
        """None if it can serve here; else why not."""
        ...

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        """Take a [N, K] weight and a [N] bias, any float dtype, and return the launcher that holds them."""
        ...


@dataclass(frozen=True)
class TorchLinear(BaseProvider):
    """``torch.nn.functional.linear``, weight and activations in one dtype. Always there; the fallback."""

    weight_dtype: torch.dtype = torch.float32
    name: str = "torch"

    @property
    def activation_dtype(self) -> torch.dtype:
        return self.weight_dtype

    def probe(self) -> str | None:
        return None

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        packed_weight = weight.to(self.weight_dtype).contiguous()
        packed_bias = None if bias is None else bias.to(self.weight_dtype)
        return lambda x: F.linear(x, packed_weight, packed_bias)

    def launcher(self, contract: Contract) -> contracts.Launcher:
        return F.linear


class _PackingLinear(BaseProvider):
    """What the providers below have in common: a CPU, float32 activations, a weight that is packed."""

    def probe(self) -> str | None:
        """None if it can serve here; else why not."""
        raise NotImplementedError

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        """Take a [N, K] weight and a [N] bias, any float dtype, and return the launcher that holds them."""
        raise NotImplementedError

    def why_not(self, device: torch.device) -> str | None:
        return f"it serves CPUs, and this is {device.type}" if device.type != "cpu" else self.probe()

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, Linear)
        if contract.dtype != torch.float32:
            return f"its activations are float32, not {_short(contract.dtype)}"
        return None

    def launcher(self, contract: Contract) -> contracts.Launcher:
        """Packs at every call: for checks. What serves is bound."""
        return lambda x, *weights: self.bind(contract, *weights)(x)

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        weight, bias = weights if len(weights) == 2 else (*weights, None)
        return self.pack(weight, bias)


@dataclass(frozen=True)
class OneDnnLinear(_PackingLinear):
    """oneDNN with the weight reordered once into its blocked layout, all in float32."""

    name: str = "onednn"
    weight_dtype: torch.dtype = torch.float32
    activation_dtype: torch.dtype = torch.float32
    rows_hint: int = 16

    def probe(self) -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "this build of torch has no oneDNN"
        return _try_out(self)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), self.rows_hint)
        packed_bias = None if bias is None else bias.float()
        run = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: run(x, packed, packed_bias, "none", [], "")


@dataclass(frozen=True)
class FbgemmHalfLinear(_PackingLinear):
    """FBGEMM with float16 weights and float32 arithmetic: half the memory traffic, no rounding of activations.

    Serves float32 contracts: rounding the weight to float16, 2^-12 of its values or less, is well within their bounds.
    """

    name: str = "fbgemm_fp16"
    weight_dtype: torch.dtype = torch.float16
    activation_dtype: torch.dtype = torch.float32

    def probe(self) -> str | None:
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            return "this build of torch has no FBGEMM (x86-64 with AVX2 only)"
        return _try_out(self)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        largest = float(weight.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise ConfigError(f"a weight of {largest:g} does not fit float16; pass dtype float32")
        packed_bias = None if bias is None else bias.float()
        packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), packed_bias)
        run = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x: run(x, packed)


def _try_out(provider: Provider) -> str | None:
    """Run the provider on a small problem: None if it agrees with float64, else what went wrong."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator)
    x = torch.randn(3, 32, generator=generator)
    try:
        y = provider.pack(weight, None)(x.to(provider.activation_dtype))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"it failed a small problem: {str(error).splitlines()[0][:120]}"
    wrong = (y.double() - x.double() @ weight.double().t()).abs().max().item()
    return None if wrong < 0.05 else f"it is off by {wrong:g} on a small problem"


def candidates(dtype: torch.dtype) -> tuple[Provider, ...]:
    """Providers for a weight dtype, the fastest measured on a CPU first; the last one can always serve."""
    if dtype == torch.float16:
        return (FbgemmHalfLinear(), TorchLinear(torch.float16))
    if dtype == torch.float32:
        return (OneDnnLinear(), TorchLinear(torch.float32))
    return (TorchLinear(dtype),)


def choose(dtype: torch.dtype) -> Provider:
    """The first candidate whose probe passes here."""
    return next(provider for provider in candidates(dtype) if provider.probe() is None)


def choose_auto() -> Provider:
    """The fastest provider that keeps arithmetic in float32: float16 weights where FBGEMM serves, else float32."""
    half = FbgemmHalfLinear()
    return half if half.probe() is None else choose(torch.float32)


def provider_report() -> list[Availability]:
    """Every provider of ``linear`` and whether it can serve here."""
    every: tuple[Provider, ...] = (FbgemmHalfLinear(), OneDnnLinear(), TorchLinear(torch.float32))
    report = []
    for provider in every:
        why_not = provider.probe()
        offers = f"{_short(provider.weight_dtype)} weights, {_short(provider.activation_dtype)} activations"
        report.append(Availability("linear", provider.name, why_not is None, why_not or offers))
    return report


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
