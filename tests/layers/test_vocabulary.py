"""The output head: its logits are those of the codes that it keeps, whichever way it multiplies."""

from __future__ import annotations

import pytest
import torch

from parhelion.distributed.group import ALONE
from parhelion.layers import linear
from parhelion.layers.alternatives import Alternatives
from parhelion.layers.fusions import ON_GPU
from parhelion.layers.program import PLAIN, Plan, Program
from parhelion.layers.vocabulary import VocabularyHead
from parhelion.ops.contract import Contract
from parhelion.ops.linear import Linear
from parhelion.ops.quantize import per_token_quantized
from parhelion.ops.resolve import Resolver
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.quantization import UNQUANTIZED, LinearWeights, QuantScheme, choose_head_scheme, dequantize, weights_of

CPU = torch.device("cpu")
HIDDEN, VOCAB = 96, 301
SCHEMES = [choose_head_scheme("fp8"), choose_head_scheme("int8")]
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
"""Of float32 sums of a hundred products beside float64."""


class QuickForOne(Resolver):
    """Knows that for one token the weights alone are best read as codes."""

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        return (15.0 if num_tokens == 1 else 25.0) if isinstance(contract, WeightOnlyMv) else 10.0


def numbers(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def weights(scheme: QuantScheme) -> LinearWeights:
    return weights_of("lm_head", numbers(VOCAB, 0), scheme, torch.float32)


def head_of(
    made: LinearWeights, resolver: Resolver | None = None, plans: tuple[Plan, ...] = (PLAIN,)
) -> VocabularyHead:
    return VocabularyHead(made, torch.float32, VOCAB, ALONE, resolver or Resolver(CPU), plans)


def product(hidden: torch.Tensor, made: LinearWeights) -> torch.Tensor:
    """In float64, of values that are what codes stand for."""
    return (hidden.double() @ dequantize(made).double().t()).float()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_several_tokens_are_quantized_and_multiplied_by_codes(scheme: QuantScheme):
    assert scheme.weight_dtype is not None
    made, hidden = weights(scheme), numbers(5, 1)
    codes, scales = per_token_quantized(hidden, scheme.weight_dtype)
    logits = head_of(made)(hidden)
    torch.testing.assert_close(logits, product(codes.double() * scales.double(), made), **ROUNDING)
    exact = hidden @ numbers(VOCAB, 0).t()
    assert 0 < (logits - exact).norm() / exact.norm() < (0.05 if scheme.weight_dtype != torch.int8 else 0.02)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_one_token_is_not_quantized_where_that_is_known_to_be_quicker(scheme: QuantScheme):
    made, hidden = weights(scheme), numbers(3, 1)
    head = head_of(made, QuickForOne(CPU), ON_GPU)
    assert isinstance(head._product, Alternatives)
    alone, among_others = head(hidden[:1]), head(hidden)
    torch.testing.assert_close(alone, product(hidden[:1], made), **ROUNDING)
    assert torch.equal(among_others, head_of(made)(hidden))
    assert (among_others[0] - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", [UNQUANTIZED, *SCHEMES], ids=lambda scheme: scheme.name)
def test_without_known_times_there_is_one_way(scheme: QuantScheme):
    program = head_of(weights(scheme), plans=ON_GPU)._product
    assert isinstance(program, Program)
    assert isinstance(program.contracts[-1], ScaledMm if scheme.is_quantized else Linear)


def test_an_unquantized_head_keeps_the_activations_dtype():
    table = numbers(VOCAB, 0).bfloat16()
    made = weights_of("lm_head", table, UNQUANTIZED, torch.float32)
    assert (made.weight.dtype, made.scales) == (torch.float32, None)
    torch.testing.assert_close(head_of(made)(numbers(4, 1)), product(numbers(4, 1), made), **ROUNDING)


def test_without_8_bit_floats_activations_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "has_float8", lambda device: False)
    made, hidden = weights(SCHEMES[0]), numbers(4, 1)
    head = head_of(made, plans=ON_GPU)
    assert isinstance(head._product, Program)
    assert [type(contract) for contract in head._product.contracts] == [WeightOnlyMm]
    torch.testing.assert_close(head(hidden), product(hidden, made), **ROUNDING)
