"""What ATen, vLLM and FlashInfer offer for row ops: agreement of the former, the calls that go to the latter."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.contract import Contract
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant import DynamicPerTokenScaledInt8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.per_token_group_fp8_quant import PerTokenGroupFp8Quant
from parhelion.ops.per_token_group_fp8_quant.providers import VLLM_MODULE
from parhelion.ops.quantize import FP8
from parhelion.ops.registry import op
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_per_block_quant import RmsNormPerBlockQuant
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.silu_and_mul_per_block_quant import SiluAndMulPerBlockQuant
from tests.ops.test_row_contracts import CPU, ROW_OPS, generator


class Recorder:
    """Stands in for a function: remembers its arguments and returns what it was told to."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        return self.result


def install(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Recorder) -> None:
    """A module of that name, and its parents, with these functions."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:depth]))
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for function_name, function in functions.items():
        setattr(sys.modules[name], function_name, function)


def launch(contract: Contract, provider: str, inputs: tuple[torch.Tensor, ...]) -> Any:
    return op(contract.name).provider(provider).launcher(contract)(*inputs)


@pytest.mark.parametrize("num_tokens", [1, 7, 64])
@pytest.mark.parametrize(
    "contract",
    [
        RmsNorm(576, dtype=torch.float32),
        RmsNorm(576),
        FusedAddRmsNorm(576, dtype=torch.float32),
        FusedAddRmsNorm(576),
        SiluAndMul(576, torch.float32),
        SiluAndMul(576),
    ],
    ids=lambda contract: contract.key(),
)
def test_aten_agrees_with_the_reference(contract: Contract, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, op(contract.name).provider("torch").launcher(contract), inputs):
        assert error.problem is None, error


def test_aten_adds_the_residual_in_place_and_leaves_x_alone():
    contract = FusedAddRmsNorm(64, dtype=torch.float32)
    x, residual, weight = contract.sample_inputs(3, CPU, generator())
    before = x.clone()
    _, total = launch(contract, "torch", (x, residual, weight))
    assert total is residual
    assert torch.equal(x, before)


def test_aten_leaves_the_gate_alone():
    x = torch.randn(3, 8, generator=generator())
    before = x.clone()
    launch(SiluAndMul(4, torch.float32), "torch", (x,))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ROW_OPS)
def test_vendors_say_in_words_why_they_cannot_serve_a_cpu(name: str):
    for provider in op(name).providers:
        if provider.name in ("vllm", "flashinfer"):
            assert provider.why_not(CPU) == "it needs an NVIDIA GPU, and this is cpu"


def test_flashinfer_refuses_float32_and_vllm_refuses_power_of_two_scales_where_its_kernel_has_none():
    for contract in (RmsNorm(64, dtype=torch.float32), FusedAddRmsNorm(64, dtype=torch.float32)):
        refused = op(contract.name).provider("flashinfer").refuses(contract)
        assert refused == "it takes float16 and bfloat16, not torch.float32"
    for kind in (RmsNormPerBlockQuant, SiluAndMulPerBlockQuant):
        provider = op(kind.name).provider("vllm")
        assert provider.refuses(kind(128, scale_format="ue8m0")) == "its scales are plain float32, not ue8m0"
        assert provider.refuses(kind(128, group_size=32)) == "its groups are 64 or 128 long, not 32"
        assert provider.refuses(kind(128)) is None


def test_vllm_rms_norm_gets_output_input_weight_epsilon(monkeypatch: pytest.MonkeyPatch):
    function = Recorder()
    install(monkeypatch, "vllm._custom_ops", rms_norm=function)
    x, weight = RmsNorm(64, 1e-5).sample_inputs(3, CPU, generator())
    y = launch(RmsNorm(64, 1e-5), "vllm", (x, weight))
    assert function.args == (y, x, weight, 1e-5)
    assert y.shape == x.shape


def test_flashinfer_rms_norm_gets_input_weight_epsilon(monkeypatch: pytest.MonkeyPatch):
    function = Recorder("y")
    install(monkeypatch, "flashinfer.norm", rmsnorm=function)
    x, weight = RmsNorm(64, 1e-5).sample_inputs(3, CPU, generator())
    assert launch(RmsNorm(64, 1e-5), "flashinfer", (x, weight)) == "y"
    assert function.args == (x, weight, 1e-5)


@pytest.mark.parametrize(
    ("provider", "module", "name"),
    [("vllm", "vllm._custom_ops", "fused_add_rms_norm"), ("flashinfer", "flashinfer.norm", "fused_add_rmsnorm")],
)
def test_fused_add_rms_norm_runs_in_place_on_a_copy_of_x(
    monkeypatch: pytest.MonkeyPatch, provider: str, module: str, name: str
):
    function = Recorder()
    install(monkeypatch, module, **{name: function})
    x, residual, weight = FusedAddRmsNorm(64).sample_inputs(3, CPU, generator())
    y, total = launch(FusedAddRmsNorm(64), provider, (x, residual, weight))
    assert function.args == (y, residual, weight, 1e-6)
    assert torch.equal(y, x)
    assert y is not x
    assert total is residual


@pytest.mark.parametrize("add_residual", [False, True])
def test_vllm_quantizing_norms_get_the_residual_last(monkeypatch: pytest.MonkeyPatch, add_residual: bool):
    function = Recorder(("codes", "scales"))
    install(
        monkeypatch, "vllm._custom_ops", rms_norm_dynamic_per_token_quant=function, rms_norm_per_block_quant=function
    )
    per_token = RmsNormDynamicPerTokenQuant(128, quant_dtype=torch.int8, add_residual=add_residual)
    x, *residual, weight = per_token.sample_inputs(3, CPU, generator())
    given = residual[0] if add_residual else None
    assert launch(per_token, "vllm", (x, *residual, weight)) == ("codes", "scales", *residual)
    assert function.args == (x, weight, 1e-6, torch.int8, None, given)
    per_block = RmsNormPerBlockQuant(128, group_size=64, add_residual=add_residual)
    assert launch(per_block, "vllm", (x, *residual, weight)) == ("codes", "scales", *residual)
    assert function.args == (x, weight, 1e-6, FP8, [1, 64], None, given)


def test_silu_and_mul_of_vllm_gets_its_output_and_flashinfers_makes_it(monkeypatch: pytest.MonkeyPatch):
    function = Recorder("y")
    install(monkeypatch, "vllm._custom_ops")
    install(monkeypatch, "flashinfer.activation", silu_and_mul=function)
    monkeypatch.setattr(torch.ops, "_C", type("C", (), {"silu_and_mul": function}), raising=False)
    (x,) = SiluAndMul(64).sample_inputs(3, CPU, generator())
    assert launch(SiluAndMul(64), "flashinfer", (x,)) == "y"
    assert function.args == (x,)
    y = launch(SiluAndMul(64), "vllm", (x,))
    assert y.shape == (3, 64)
    assert function.args == (y, x)


def test_vllm_quantizations_get_their_arguments(monkeypatch: pytest.MonkeyPatch):
    block, fp8, int8 = Recorder("block"), Recorder("fp8"), Recorder(("codes", "scales", None))
    install(
        monkeypatch,
        "vllm._custom_ops",
        silu_and_mul_per_block_quant=block,
        scaled_fp8_quant=fp8,
        scaled_int8_quant=int8,
    )
    x = torch.ones(2, 256)
    assert launch(SiluAndMulPerBlockQuant(128, group_size=64), "vllm", (x,)) == "block"
    assert block.args == (x, 64, FP8)
    assert launch(DynamicPerTokenScaledFp8Quant(256), "vllm", (x,)) == "fp8"
    assert (fp8.args, fp8.kwargs) == ((x,), {"use_per_token_if_dynamic": True})
    assert launch(DynamicPerTokenScaledInt8Quant(256), "vllm", (x,)) == ("codes", "scales")
    assert int8.args == (x,)


def test_vllm_group_quantization_is_told_the_scale_format(monkeypatch: pytest.MonkeyPatch):
    function = Recorder("quantized")
    install(monkeypatch, VLLM_MODULE, per_token_group_quant_fp8=function)
    x = torch.ones(2, 256)
    assert launch(PerTokenGroupFp8Quant(256, scale_format="ue8m0"), "vllm", (x,)) == "quantized"
    assert (function.args, function.kwargs) == ((x, 128), {"use_ue8m0": True})
