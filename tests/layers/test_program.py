"""Layers as data: what a plan makes of a sequence of calls, and that running it computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from parhelion.layers.decoder_layer import add_norm
from parhelion.layers.fusions import FEWER_LAUNCHES, FUSED, FUSED_ON_GPU, plans
from parhelion.layers.linear import linear_calls
from parhelion.layers.program import PLAIN, Call, Chain, Fusion, Plan, Program, cover
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract, Output, Tensors, Traffic
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.quantize import FP8
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.scaled_mm_of_activations import ScaledMmOfActivations
from parhelion.ops.scaled_mm_silu_and_mul import ScaledMmSiluAndMul
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.quantization import FP8_BLOCK, FP8_PER_TOKEN, INT8_PER_TOKEN, LinearWeights, QuantScheme, dequantize
from parhelion.quantization.codes import quantize_per_block, quantize_per_channel

CPU = torch.device("cpu")
HIDDEN, INTERMEDIATE = 256, 384


@dataclass(frozen=True)
class _Stub(Contract):
    """A contract that only has a name."""

    label: str = ""
    name: ClassVar[str] = "stub"
    outputs: ClassVar[tuple[Output, ...]] = ()

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return ()

    def reference(self, *inputs: Any, **unused: Any) -> Any:
        return inputs

    def traffic(self, num_tokens: int) -> Traffic:
        return Traffic(0, 0)


class _First(_Stub):
    pass


class _Second(_Stub):
    pass


class _Both(_Stub):
    pass


PAIR = (Fusion(_First, _Second, lambda first, second: _Both(first.label + second.label)),)


def call(contract: Contract, inputs: str, outputs: str) -> Call:
    return Call(contract, tuple(inputs.split()), tuple(outputs.split()))


def test_neighbours_become_one_call_with_the_firsts_inputs_and_both_outputs():
    calls = [call(_First("a"), "x r", "y r"), call(_Second("b"), "y", "c s")]
    [fused] = cover(calls, PAIR)
    assert fused == call(_Both("ab"), "x r", "c s r")


def test_the_plain_plan_changes_nothing():
    calls = [call(_First("a"), "x", "y"), call(_Second("b"), "y", "z")]
    assert cover(calls, PLAIN) == calls


def test_a_value_that_someone_else_reads_is_not_fused_away():
    calls = [call(_First("a"), "x", "y"), call(_Second("b"), "y", "z"), call(_First("c"), "y", "w")]
    assert cover(calls, PAIR) == calls


def test_a_value_that_is_written_again_before_it_is_read_may_be_fused_away():
    calls = [
        call(_First("a"), "x", "y"),
        call(_Second("b"), "y", "z"),
        call(_First("c"), "z", "y"),
        call(_Second("d"), "y", "w"),
    ]
    assert [fused.contract.label for fused in cover(calls, PAIR)] == ["ab", "cd"]


def test_what_more_a_second_call_takes_the_fused_one_takes_behind_the_first_ones_inputs():
    (fused,) = cover([call(_First("a"), "x", "y"), call(_Second("b"), "y other", "z")], PAIR)
    assert (fused.inputs, fused.outputs) == (("x", "other"), ("z",))


def test_what_only_passes_between_two_calls_is_gone_and_what_the_first_updates_is_not():
    quantize, product = (
        call(_First("a"), "x cache", "codes scales cache"),
        call(_Second("b"), "codes scales cache", "y"),
    )
    (fused,) = cover([quantize, product], PAIR)
    assert (fused.inputs, fused.outputs) == (("x", "cache"), ("y", "cache"))
    calls = [quantize, product, call(_First("c"), "scales", "w")]
    assert cover(calls, PAIR) == calls


def test_a_fused_calls_weights_are_the_first_ones_and_then_the_second_ones():
    norm, scale = torch.ones(1), torch.ones(2)
    (fused,) = cover([Call(_First("a"), ("x",), ("y",), (norm,)), Call(_Second("b"), ("y",), ("z",), (scale,))], PAIR)
    assert [each is want for each, want in zip(fused.weights, (norm, scale), strict=True)] == [True, True]


def test_fusions_are_applied_one_after_the_other_so_that_what_one_makes_another_may_take():
    calls = [call(_First("a"), "x", "y"), call(_First("b"), "y", "z"), call(_Second("c"), "z", "w")]
    chained: Plan = (*PAIR, Fusion(_First, _Both, lambda first, both: _Both(first.label + both.label)))
    assert [fused.contract.label for fused in cover(calls, chained)] == ["abc"]
    assert [fused.contract.label for fused in cover(calls, chained[::-1])] == ["a", "bc"]


def test_a_second_call_that_takes_the_first_ones_output_elsewhere_is_not_fused():
    calls = [call(_First("a"), "x", "y"), call(_Second("b"), "other y", "z")]
    assert cover(calls, PAIR) == calls


def _feed_forward(scheme: QuantScheme, generator: torch.Generator) -> list[Call]:
    """A norm with residual, a quantized gate and up, the activation, and a quantized down."""

    def weights(rows: int, columns: int) -> LinearWeights:
        weight = torch.randn(rows, columns, generator=generator) * 0.05
        make = quantize_per_block if scheme.block else quantize_per_channel
        codes, scales = make(weight, scheme.block or scheme.weight_dtype)  # type: ignore[arg-type]
        return LinearWeights(codes, scales, None, scheme)

    norm_weight = torch.rand(HIDDEN, generator=generator)
    return [
        *add_norm(HIDDEN, 1e-6, torch.float32, norm_weight),
        *linear_calls("normed", "gate_up", weights(2 * INTERMEDIATE, HIDDEN), torch.float32),
        Call(SiluAndMul(INTERMEDIATE, torch.float32), ("gate_up",), ("activated",)),
        *linear_calls("activated", "hidden", weights(HIDDEN, INTERMEDIATE), torch.float32),
    ]


def _run(calls: list[Call], hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    program = Program(calls, Resolver(CPU), ("hidden", "residual"))
    values: list[Any] = [hidden.clone(), residual.clone()] + [None] * (program.num_values - 2)
    program(values)
    return values[0], values[1]


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, FP8_BLOCK, INT8_PER_TOKEN], ids=lambda scheme: scheme.name)
def test_the_fused_plan_computes_what_the_plain_plan_does_in_two_launches_less(scheme: QuantScheme):
    generator = torch.Generator().manual_seed(5)
    calls = _feed_forward(scheme, generator)
    fused = cover(calls, FUSED)
    assert (len(calls), len(fused)) == (6, 4)
    hidden, residual = torch.randn(2, 7, HIDDEN, generator=generator)
    plain_hidden, plain_residual = _run(calls, hidden, residual)
    fused_hidden, fused_residual = _run(fused, hidden, residual)
    torch.testing.assert_close(fused_residual, plain_residual, rtol=0, atol=0)
    # A code may fall to the other side of a rounding boundary: one step of FP8 is 6% of one of 384 summands.
    torch.testing.assert_close(fused_hidden, plain_hidden, rtol=0.02, atol=0.02)


def test_the_first_norm_of_a_model_has_no_residual_and_is_fused_too():
    generator = torch.Generator().manual_seed(6)
    codes, scales = quantize_per_channel(torch.randn(32, HIDDEN, generator=generator), torch.float8_e4m3fn)
    calls = [
        Call(RmsNorm(HIDDEN, 1e-6, torch.float32), ("residual",), ("normed",), (torch.ones(HIDDEN),)),
        *linear_calls("normed", "hidden", LinearWeights(codes, scales, None, FP8_PER_TOKEN), torch.float32),
    ]
    assert [type(fused.contract).__name__ for fused in cover(calls, FUSED)] == [
        "RmsNormDynamicPerTokenQuant",
        "ScaledMm",
    ]


@pytest.mark.parametrize(
    ("scheme", "kinds"),
    [(FP8_PER_TOKEN, ["WeightOnlyMm"]), (FP8_BLOCK, ["Linear"])],
    ids=["a scale a channel", "a block"],
)
def test_without_8_bit_floats_fp8_weights_meet_plain_activations(
    scheme: QuantScheme, kinds: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("parhelion.layers.linear.has_float8", lambda device: False)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(128, HIDDEN, generator=generator) * 0.05
    make = quantize_per_block if scheme.block else quantize_per_channel
    codes, scales = make(weight, scheme.block or scheme.weight_dtype)  # type: ignore[arg-type]
    linear = LinearWeights(codes, scales, None, scheme)
    calls = linear_calls("hidden", "out", linear, torch.float32)
    assert [type(call.contract).__name__ for call in calls] == kinds
    x = torch.randn(5, HIDDEN, generator=generator)
    values: list[Any] = [x, None]
    Program(calls, Resolver(CPU), ("hidden", "out"))(values)
    # The codes stand for exact float32 numbers; only sums differ in their order.
    torch.testing.assert_close(values[1], x @ dequantize(linear).t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("epsilon", [None, 1e-6])
def test_on_a_gpu_rotation_and_attention_are_one_call_and_on_a_cpu_two(epsilon: float | None):
    heads = (4, 2, 64)
    weights = (torch.empty(128, 64), *(torch.empty(64) for _ in range(0 if epsilon is None else 2)))
    rope = RopeAndCache(*heads, 16, 128) if epsilon is None else FusedQkNormRope(*heads, epsilon, 16, 128)
    calls = [
        Call(rope, ("qkv", "positions", "slot_mapping", "kv_cache"), ("query", "kv_cache"), weights),
        Call(PagedAttention(*heads, 16, 0.125, 20), ("query", "kv_cache", "attention"), ("attended",)),
    ]
    (fused,) = cover(calls, plans("fused", torch.device("cuda"))[0])
    assert fused.contract == FusedRopeAttention(*heads, 16, 128, 0.125, epsilon, 20)
    assert fused.inputs == ("qkv", "positions", "slot_mapping", "kv_cache", "attention")
    assert (fused.outputs, fused.weights) == (("attended", "kv_cache"), weights)
    assert [cover(calls, each) for each in plans("fused", CPU)] == [calls]


@pytest.mark.parametrize("scheme", [None, FP8_PER_TOKEN])
def test_sums_over_ranks_stay_apart_where_rows_cannot_be_exchanged_inside_kernels(scheme: QuantScheme | None):
    norm = FusedAddRmsNorm(64, 1e-6, torch.bfloat16)
    calls = add_norm(64, 1e-6, torch.bfloat16, torch.ones(64), num_ranks=2)
    fused_norm: Contract = norm
    if scheme is not None:
        calls.append(Call(DynamicPerTokenScaledFp8Quant(64, torch.bfloat16), ("normed",), ("codes", "scales")))
        fused_norm = RmsNormDynamicPerTokenQuant(64, 1e-6, torch.bfloat16, FP8, add_residual=True)
    for fused, apart in zip(
        plans("fused", torch.device("cuda")), plans("fused", torch.device("cuda"), exchanges=False), strict=True
    ):
        together = AllReduceRmsNorm(64, 2, 1e-6, torch.bfloat16, None if scheme is None else FP8)
        assert [call.contract for call in cover(calls, fused)] == [together]
        assert [call.contract for call in cover(calls, apart)] == [AllReduce(64, 2, torch.bfloat16), fused_norm]


def test_on_a_gpu_a_quantized_feed_forward_may_be_two_launches_and_computes_the_same():
    generator = torch.Generator().manual_seed(5)
    calls = _feed_forward(FP8_PER_TOKEN, generator)
    usual, fewer = (cover(calls, each) for each in (FUSED_ON_GPU, FEWER_LAUNCHES))
    assert [type(each.contract) for each in fewer[1:]] == [ScaledMmSiluAndMul, ScaledMmOfActivations]
    assert (len(usual), len(fewer)) == (4, 3)
    hidden, residual = torch.randn(2, 7, HIDDEN, generator=generator)
    usual_hidden, usual_residual = _run(usual, hidden, residual)
    fewer_hidden, fewer_residual = _run(fewer, hidden, residual)
    torch.testing.assert_close(fewer_residual, usual_residual, rtol=0, atol=0)
    torch.testing.assert_close(fewer_hidden, usual_hidden, rtol=0.02, atol=0.02)


class _Third(_Stub):
    pass


class _Fourth(_Stub):
    pass


CHAIN: Plan = (
    Chain((_First, _Second, _Third), (2, 1), lambda a, b, c: (_Both(a.label + b.label), _Fourth(b.label + c.label))),
)


def test_three_calls_in_a_row_become_two_that_pass_what_they_like_between_them():
    calls = [
        Call(_First("a"), ("x", "scales"), ("y",), (torch.ones(1),)),
        call(_Second("b"), "y", "codes amax"),
        Call(_Third("c"), ("codes", "amax"), ("z",), (torch.ones(3),)),
        call(_First("d"), "z", "w"),
    ]
    first, second, rest = cover(calls, CHAIN)
    assert (first.contract, second.contract, rest) == (_Both("ab"), _Fourth("bc"), calls[3])
    assert (first.inputs, first.outputs, first.weights) == (("x", "scales"), ("codes", "amax"), calls[0].weights)
    assert (second.inputs, second.outputs, second.weights) == (("codes", "amax"), ("z",), calls[2].weights)


@pytest.mark.parametrize("reader", ["y", "codes"])
def test_three_calls_stay_if_someone_else_reads_what_passes_between_them(reader: str):
    calls = [call(_First("a"), "x", "y"), call(_Second("b"), "y", "codes"), call(_Third("c"), "codes", "z")]
    assert len(cover(calls, CHAIN)) == 2
    assert cover([*calls, call(_First("d"), reader, "w")], CHAIN) == [*calls, call(_First("d"), reader, "w")]


def test_what_was_read_for_the_last_time_is_let_go_at_once():
    held: list[list[bool]] = []

    class Watching(Resolver):
        def launcher(self, contract: Contract) -> Any:
            launch = super().launcher(contract)

            def watched(*inputs: torch.Tensor) -> Any:
                held.append([value is not None for value in values])
                return launch(*inputs)

            return watched

    calls = [
        Call(SiluAndMul(64, torch.float32), ("x",), ("once",)),
        Call(SiluAndMul(32, torch.float32), ("once",), ("twice",)),
        Call(SiluAndMul(32, torch.float32), ("once",), ("also",)),
        Call(SiluAndMul(16, torch.float32), ("twice",), ("x",)),
        Call(SiluAndMul(16, torch.float32), ("also",), ("result",)),
    ]
    program = Program(calls, Watching(CPU), ("x", "other"))
    values: list[Any] = [torch.ones(3, 128), "other", None, None, None, None]
    program(values)
    x, once, result = 0, 2, 5
    assert held[1][x] is False  # it is written again
    assert held[2][once] is True
    assert held[3][once] is False
    assert [value is not None for value in values] == [True, True, False, False, False, True]
    assert values[x].shape == values[result].shape == (3, 16)
