"""Every provider of ``linear`` against the reference, and how one is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.gemm.formulas import product
from parhelion.ops.linear import Launcher, Provider, choose, choose_auto, provider_report
from parhelion.ops.linear import cpu as providers

FLOAT32 = (providers.FbgemmHalfLinear(), providers.OneDnnLinear(), providers.TorchLinear(torch.float32))
HALF = (providers.TorchLinear(torch.bfloat16), providers.TorchLinear(torch.float16))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The oracle: [M, K] by [N, K] to [M, N] float32, whatever the inputs' dtypes."""
    return product(x.float(), weight.float(), bias)


def serving(every: tuple[Provider, ...]) -> list[Provider]:
    """Those that can serve on this machine; what the others say is tested through the report."""
    return [provider for provider in every if provider.probe() is None]


def name_of(provider: Provider) -> str:
    return f"{provider.name}-{provider.weight_dtype}".replace("torch.", "")


def problem(m: int, n: int, k: int, provider: Provider) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and bias; the weight is rounded as the provider stores it, so that only arithmetic is compared."""
    generator = torch.Generator().manual_seed(m * 1000 + n + k)
    x = torch.randn(m, k, generator=generator).to(provider.activation_dtype)
    weight = torch.randn(n, k, generator=generator).to(provider.weight_dtype).float()
    bias = torch.randn(n, generator=generator).to(provider.activation_dtype).float()
    return x, weight, bias


@pytest.mark.parametrize("m", [0, 1, 3, 64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (48, 32), (257, 100), (96, 576)])
@pytest.mark.parametrize("provider", serving(FLOAT32), ids=name_of)
def test_float32_arithmetic_agrees_with_the_reference(provider: Provider, m: int, n: int, k: int) -> None:
    x, weight, bias = problem(m, n, k, provider)
    for this_bias in (None, bias):
        y = provider.pack(weight, this_bias)(x)
        oracle = linear(x.double(), weight, this_bias)
        assert y.shape == (m, n)
        assert y.dtype == torch.float32
        # The order of k <= 576 additions of unit numbers: sqrt(k) * 6e-8 * |sum|, a few 1e-5 at most.
        torch.testing.assert_close(y, oracle, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("m", [0, 1, 3, 64])
@pytest.mark.parametrize("provider", serving(HALF), ids=name_of)
def test_half_precision_agrees_to_a_unit_in_the_last_place_of_its_output(provider: Provider, m: int) -> None:
    x, weight, bias = problem(m, 48, 100, provider)
    for this_bias in (None, bias):
        y = provider.pack(weight, this_bias)(x)
        assert y.dtype == provider.activation_dtype
        unit = torch.finfo(y.dtype).eps
        # One rounding of the sum and one where the bias is added; near zero, of the terms that cancel.
        torch.testing.assert_close(y.float(), linear(x, weight, this_bias), rtol=2 * unit, atol=10 * unit)


@pytest.mark.parametrize("provider", serving(FLOAT32 + HALF), ids=name_of)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_taken_in_any_float_dtype_and_not_kept(provider: Provider, given: torch.dtype) -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).to(given)
    launch = provider.pack(weight.t().contiguous().t(), None)
    x = torch.eye(8).to(provider.activation_dtype)
    expected = weight.to(provider.weight_dtype).float().t()
    torch.testing.assert_close(launch(x).float(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("provider", serving((providers.OneDnnLinear(),)), ids=name_of)
def test_a_row_comes_out_the_same_alone_and_among_others(provider: Provider) -> None:
    x, weight, _ = problem(64, 96, 576, provider)
    launch = provider.pack(weight, None)
    together = launch(x)
    for count in (1, 2, 7, 33):
        assert torch.equal(launch(x[:count]), together[:count])


@pytest.mark.parametrize("provider", serving((providers.FbgemmHalfLinear(),)), ids=name_of)
def test_a_weight_beyond_float16_is_refused_with_its_value_and_the_way_out(provider: Provider) -> None:
    weight = torch.zeros(4, 4)
    weight[1, 2] = -70000.0
    with pytest.raises(ConfigError, match=r"70000 does not fit float16.*dtype float32"):
        provider.pack(weight, None)
    weight[1, 2] = -65504.0
    assert provider.pack(weight, None)(torch.eye(4))[2, 1] == -65504.0


def test_the_report_names_every_provider_once_and_says_what_it_offers_or_why_not() -> None:
    report = provider_report()
    assert [item.provider for item in report] == ["fbgemm_fp16", "onednn", "torch"]
    for item, provider in zip(report, FLOAT32, strict=True):
        assert item.op == "linear"
        assert item.available == (provider.probe() is None)
        assert item.reason == (provider.probe() or item.reason)
        if item.available:
            assert item.reason.endswith("weights, float32 activations")
    assert report[-1].available, "torch's own linear can always serve"


@dataclass(frozen=True)
class FakeLinear:
    """A provider that multiplies by a factor too much, or fails, or says no."""

    factor: float = 1.0
    refusal: str | None = None
    error: str | None = None
    name: str = "fake"
    weight_dtype: torch.dtype = torch.float32
    activation_dtype: torch.dtype = torch.float32

    def probe(self) -> str | None:
        return self.refusal or providers._try_out(self)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Launcher:
        if self.error is not None:
            raise RuntimeError(self.error)
        return lambda x: self.factor * linear(x, weight, bias)


def test_a_probe_finds_wrong_results_and_failures() -> None:
    assert FakeLinear().probe() is None
    assert "is off by" in (FakeLinear(factor=1.1).probe() or "")
    assert FakeLinear(error="no such kernel\nstack").probe() == "it failed a small problem: no such kernel"


@pytest.mark.parametrize(
    "broken", [FakeLinear(refusal="wrong machine"), FakeLinear(factor=2.0), FakeLinear(error="illegal instruction")]
)
def test_choose_falls_back_to_the_next_candidate_when_a_probe_says_no(
    broken: FakeLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = providers.TorchLinear(torch.float32)
    monkeypatch.setattr(providers, "candidates", lambda dtype: (broken, fallback))
    assert choose(torch.float32) is fallback
    monkeypatch.setattr(providers, "candidates", lambda dtype: (FakeLinear(), fallback))
    assert choose(torch.float32) == FakeLinear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_chosen_stores_the_dtype_asked_for(dtype: torch.dtype) -> None:
    provider = choose(dtype)
    assert provider.weight_dtype == dtype
    assert provider.probe() is None


def test_auto_keeps_arithmetic_in_float32_with_and_without_fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_auto().activation_dtype == torch.float32
    monkeypatch.setattr(providers.FbgemmHalfLinear, "probe", lambda self: "no FBGEMM")
    fallback = choose_auto()
    assert fallback.weight_dtype == fallback.activation_dtype == torch.float32
