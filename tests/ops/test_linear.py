"""Every provider of ``linear`` that serves a CPU, by the contract, against the reference; refusals and probes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.linear import OP, Linear
from parhelion.ops.linear.cpu import FbgemmHalfLinear, PackingLinear, try_out
from parhelion.ops.provider import BaseProvider

CPU = torch.device("cpu")
FLOAT32 = ("fbgemm_fp16", "onednn", "torch", "reference")
PACKING = ("fbgemm_fp16", "onednn")


def serving(names: tuple[str, ...]) -> list[str]:
    """Those that can serve on this machine; what the others say is tested below."""
    return [name for name in names if OP.provider(name).why_not(CPU) is None]


def problem(contract: Linear, num_tokens: int, provider: str = "torch") -> tuple[torch.Tensor, Tensors]:
    """x and the weights; these are rounded as the provider stores them, so that only arithmetic is compared."""
    generator = torch.Generator().manual_seed(num_tokens * 1000 + contract.out_features + contract.in_features)
    x, *weights = contract.sample_inputs(num_tokens, CPU, generator)
    weights[0] *= contract.in_features**0.5
    if provider == "fbgemm_fp16":
        weights[0] = weights[0].half().float()
    return x, tuple(weights)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("m", [0, 1, 3, 64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (48, 32), (257, 100), (96, 576)])
@pytest.mark.parametrize("provider", serving(FLOAT32))
def test_float32_arithmetic_agrees_with_the_reference(provider: str, m: int, n: int, k: int, bias: bool) -> None:
    contract = Linear(k, n, torch.float32, bias)
    assert OP.provider(provider).refuses(contract) is None
    x, weights = problem(contract, m, provider)
    oracle = contract.reference(x.double(), *(weight.double() for weight in weights))
    for y in (OP.provider(provider).bind(contract, *weights)(x), OP.provider(provider).launcher(contract)(x, *weights)):
        assert y.shape == (m, n)
        assert y.dtype == torch.float32
        # The order of k <= 576 additions of unit numbers: sqrt(k) * 6e-8 * |sum|, a few 1e-5 at most.
        torch.testing.assert_close(y.double(), oracle, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("m", [0, 1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_agrees_to_a_unit_in_the_last_place_of_its_output(
    dtype: torch.dtype, m: int, bias: bool
) -> None:
    contract = Linear(100, 48, dtype, bias)
    x, weights = problem(contract, m)
    y = OP.provider("torch").bind(contract, *weights)(x)
    assert y.dtype == dtype
    unit = torch.finfo(dtype).eps
    oracle = contract.reference(x.double(), *(weight.double() for weight in weights))
    # One rounding of the sum and one where the bias is added; near zero, of the terms that cancel.
    torch.testing.assert_close(y.double(), oracle, rtol=2 * unit, atol=10 * unit)


@pytest.mark.parametrize("provider", serving(FLOAT32))
def test_a_weight_may_lie_in_memory_as_it_likes(provider: str) -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).half().float()
    launch = OP.provider(provider).bind(Linear(8, 16, torch.float32), weight.t().contiguous().t())
    torch.testing.assert_close(launch(torch.eye(8)), weight.t(), rtol=0, atol=0)


@pytest.mark.parametrize("provider", serving(PACKING))
def test_a_packed_weight_is_a_copy_of_what_was_loaded(provider: str) -> None:
    contract = Linear(100, 48, torch.float32)
    x, (weight,) = problem(contract, 3, provider)
    launch = OP.provider(provider).bind(contract, weight)
    before = launch(x)
    weight.zero_()
    assert torch.equal(launch(x), before)


@pytest.mark.parametrize("provider", serving(("onednn",)))
def test_a_row_comes_out_the_same_alone_and_among_others(provider: str) -> None:
    contract = Linear(576, 96, torch.float32)
    x, weights = problem(contract, 64)
    launch = OP.provider(provider).bind(contract, *weights)
    together = launch(x)
    for count in (1, 2, 7, 33):
        assert torch.equal(launch(x[:count]), together[:count])


@pytest.mark.parametrize("provider", serving(("fbgemm_fp16",)))
def test_a_weight_beyond_float16_is_refused_with_its_value_and_the_way_out(provider: str) -> None:
    contract, weight = Linear(4, 4, torch.float32), torch.zeros(4, 4)
    weight[1, 2] = -70000.0
    with pytest.raises(ConfigError, match=r"70000 does not fit float16.*dtype float32"):
        OP.provider(provider).bind(contract, weight)
    weight[1, 2] = -65504.0
    assert OP.provider(provider).bind(contract, weight)(torch.eye(4))[2, 1] == -65504.0


@pytest.mark.parametrize("provider", PACKING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_packs_refuses_all_but_float32_activations(provider: str, dtype: torch.dtype) -> None:
    refused = OP.provider(provider).refuses(Linear(8, 16, dtype))
    assert refused == f"its activations are float32, not {dtype}".replace("torch.", "")


@pytest.mark.parametrize("provider", PACKING)
def test_what_packs_serves_no_gpu(provider: str) -> None:
    assert OP.provider(provider).why_not(torch.device("cuda")) == "it serves CPUs, and this is cuda"


def test_torchs_own_linear_can_always_serve() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert OP.provider("torch").why_not(CPU) is None
        assert OP.provider("torch").refuses(Linear(8, 16, dtype)) is None


class FakeLinear(BaseProvider):
    """A provider that multiplies by a factor too much, or fails."""

    name = "fake"

    def __init__(self, factor: float = 1.0, error: str | None = None) -> None:
        self.factor = factor
        self.error = error

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        if self.error is not None:
            raise RuntimeError(self.error)
        return lambda x: self.factor * contract.reference(x, *weights)


def test_a_probe_finds_wrong_results_and_failures() -> None:
    assert try_out(FakeLinear()) is None
    assert "is off by" in (try_out(FakeLinear(factor=1.1)) or "")
    assert try_out(FakeLinear(error="no such kernel\nstack")) == "it failed a small problem: no such kernel"


def test_a_library_that_torch_was_built_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert OP.provider("onednn").why_not(CPU) == "this build of torch has no oneDNN"
    # Its setter would change the engine of the whole process; the list is all that the probe reads.
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    assert "has no FBGEMM" in (OP.provider("fbgemm_fp16").why_not(CPU) or "")


def test_a_library_that_is_there_must_pass_the_small_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FbgemmHalfLinear, "missing", lambda self: None)
    monkeypatch.setattr(FbgemmHalfLinear, "bind", FakeLinear(factor=2.0).bind)
    assert "is off by" in (OP.provider("fbgemm_fp16").why_not(CPU) or "")
    assert issubclass(FbgemmHalfLinear, PackingLinear)
