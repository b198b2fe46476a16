"""TorchInductor on a CPU: what it fuses agrees with the formulas, how often it compiles, how its absence is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from parhelion.ops.contract import Contract, Tensors, as_tuple
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.provider import InductorProvider
from parhelion.ops.registry import op, provider_report
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.platform.compiler import cpp_compiler

CPU = torch.device("cpu")
FUSED = (RmsNorm(48, 1e-5, torch.float32), FusedAddRmsNorm(48, 1e-5, torch.float32), SiluAndMul(48, torch.float32))
STEPS = (1, 2, 7, 1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 48)
"""More sizes of a step than torch.compile is ready to compile for."""


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def sample(contract: Contract, num_tokens: int) -> tuple[Tensors, Tensors]:
    """Inputs and weights."""
    inputs = contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(num_tokens))
    count = len(inputs) - contract.num_weights
    return inputs[:count], inputs[count:]


@pytest.mark.parametrize("contract", FUSED, ids=lambda contract: contract.name)
def test_what_is_fused_agrees_with_float64_and_writes_in_place(contract: Contract) -> None:
    provider = op(contract.name).provider("inductor")
    assert provider.why_not(CPU) is None, "this test needs a C++ compiler: install g++"
    _, weights = sample(contract, 1)
    launch = provider.bind(contract, *weights)
    with torch.inference_mode():
        for num_tokens in (1, 2, 7):
            inputs, _ = sample(contract, num_tokens)
            oracle = as_tuple(contract.reference(*(x.double() for x in (*inputs, *weights))))
            outputs = as_tuple(launch(*inputs))
            assert len(outputs) == len(oracle)
            for output, expected in zip(outputs, oracle, strict=True):
                assert output.dtype == torch.float32
                # Each of a few operations, and sums over 48 elements, are rounded to float32.
                torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=2e-6)
            for position in contract.mutated:
                torch.testing.assert_close(inputs[position].double(), oracle[-1], atol=2e-6, rtol=2e-6)


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Let torch.compile trace as ever, and run what it traced as it is: counted, and quicker than a C++ compiler."""
    counter, compile_ = CompileCounter(), torch.compile

    def counted(function: object, *, fullgraph: bool, dynamic: bool | None, options: object) -> object:
        return compile_(function, fullgraph=fullgraph, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", counted)
    return counter


@pytest.mark.parametrize(
    "contract", [*FUSED, RopeAndCache(6, 2, 16, 8, 100, torch.float32)], ids=lambda contract: contract.name
)
def test_what_serves_compiles_for_one_token_and_for_any_other_number_of_them_and_once_for_all_layers(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = count_compilations(monkeypatch)
    most = max(STEPS)
    inputs, weights = sample(contract, most)
    layers = [op(contract.name).provider("inductor").bind(contract, *weights) for _ in range(3)]
    with torch.inference_mode():
        for num_tokens in STEPS:
            for launch in layers:
                # A KV cache does not grow with the step.
                launch(*(x[:num_tokens].clone() if len(x) == most else x for x in inputs))
    assert counter.frame_count == 2


def test_what_is_measured_compiles_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = count_compilations(monkeypatch)
    launch = InductorProvider().launcher(FUSED[0])
    for num_tokens in (1, 2, 7, 2, 1):
        inputs, weights = sample(FUSED[0], num_tokens)
        launch(*inputs, *weights)
    assert counter.frame_count == 3


def test_attention_is_not_offered_because_its_reference_goes_from_row_to_row() -> None:
    assert "one graph" in (op("paged_attention").provider("inductor").why_not(CPU) or "")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_compiler_the_report_names_the_way_out(no_compiler: None) -> None:
    assert cpp_compiler() is None
    entries = [entry for entry in provider_report(CPU) if entry.provider == "inductor"]
    assert len(entries) > len(FUSED)
    for entry in entries:
        assert not entry.available
        assert "g++" in entry.reason
