"""The GEMM contracts: their references beside independent formulas in float64, what they count, and who offers them."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from parhelion.ops import linear, scaled_mm, scaled_mm_blockwise, weight_only_mm
from parhelion.ops.check import check
from parhelion.ops.contract import Contract, Traffic
from parhelion.ops.gemm.config import GemmShape, default_config, shared_bytes, split_span, token_bucket
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.linear import Linear
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_blockwise import ScaledMmBlockwise
from parhelion.ops.scaled_mm_blockwise import providers as blockwise_providers
from parhelion.ops.weight_only_mm import WeightOnlyMm

CPU = torch.device("cpu")

CONTRACTS = (
    Linear(96, 40),
    Linear(96, 40, torch.float32, bias=True),
    ScaledMm(96, 40),
    ScaledMm(96, 40, torch.int8, torch.float16, bias=True),
    ScaledMmBlockwise(320, 200),
    ScaledMmBlockwise(96, 40, block=32, bias=True),
    WeightOnlyMm(96, 40),
    WeightOnlyMm(96, 40, torch.float32, bias=True),
)


def sample(contract: Contract, num_tokens: int) -> tuple[torch.Tensor, ...]:
    return contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(7))


def by_hand(contract: Contract, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Every y[m, n] as a sum over k of dequantized values, each looked up on its own, in float64."""
    bias = inputs[-1].double() if getattr(contract, "bias", False) else 0.0
    values = [x.double() for x in inputs]
    if isinstance(contract, Linear):
        x, weight = values[:2]
    elif isinstance(contract, WeightOnlyMm):
        x, weight = values[0], values[1] * values[2]
    elif isinstance(contract, ScaledMm):
        x, weight = values[0] * values[1], values[2] * values[3]
    else:
        assert isinstance(contract, ScaledMmBlockwise)
        codes, scales, weight_codes, weight_scales = values[:4]
        k = torch.arange(contract.in_features) // contract.block
        n = torch.arange(contract.out_features) // contract.block
        x = codes * scales[:, k]
        weight = weight_codes * weight_scales[n[:, None], k[None, :]]
    return torch.einsum("mk,nk->mn", x, weight) + bias


@pytest.mark.parametrize("num_tokens", [1, 13])
@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_the_reference_agrees_with_an_independent_formula(contract: Contract, num_tokens: int):
    inputs = sample(contract, num_tokens)
    y = contract.reference(*inputs)
    oracle = by_hand(contract, inputs)
    unit = torch.finfo(y.dtype).eps
    # Half a unit for the rounding of y, and what summing 320 products in float32 costs near zero.
    torch.testing.assert_close(y.double(), oracle, rtol=unit, atol=max(1e-5, unit / 8))


@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_float64_inputs_are_computed_in_float64(contract: Contract):
    inputs = sample(contract, 5)
    # Codes stay codes; whatever they are multiplied with is float64.
    widened = tuple(x if x.dtype in (torch.int8, torch.float8_e4m3fn) else x.double() for x in inputs)
    y = contract.reference(*widened)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, by_hand(contract, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_the_reference_leaves_its_inputs_alone_and_the_last_are_weights(contract: Contract):
    inputs = sample(contract, 5)
    before = [x.clone() for x in inputs]
    contract.reference(*inputs)
    assert all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(inputs, before, strict=True))
    activations = inputs[: len(inputs) - contract.num_weights]
    assert [x.size(0) for x in activations] == [5] * len(activations)
    assert len(activations) == (1 if isinstance(contract, Linear | WeightOnlyMm) else 2)


@pytest.mark.parametrize(
    ("contract", "traffic"),
    [
        # x 3 x 64, weight 32 x 64, y 3 x 32, bias 32, two bytes each; 2 x 3 x 64 x 32 FLOPs.
        (Linear(64, 32, bias=True), Traffic(2 * (192 + 2048 + 96 + 32), 12288, "bfloat16")),
        # Codes of one byte, y of two, 3 + 32 scales of four.
        (ScaledMm(64, 32), Traffic(192 + 2048 + 2 * 96 + 4 * 35, 12288, "float8")),
        (ScaledMm(64, 32, torch.int8, torch.float32), Traffic(192 + 2048 + 4 * 96 + 4 * 35, 12288, "int8")),
        # 2 groups of K for each of 3 tokens and of ceil(160 / 128) = 2 blocks of N: 10 scales.
        (ScaledMmBlockwise(256, 160), Traffic(768 + 40960 + 2 * 480 + 4 * 10, 245760, "float8")),
        # x of two bytes, the weight of one, 32 scales.
        (WeightOnlyMm(64, 32), Traffic(2 * 192 + 2048 + 2 * 96 + 4 * 32, 12288, "bfloat16")),
    ],
    ids=str,
)
def test_traffic_counts_each_input_and_output_once(contract: Contract, traffic: Traffic):
    assert contract.traffic(3) == traffic


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["torch", "onednn", "fbgemm_fp16"])
def test_cpu_providers_of_linear_keep_the_contract_bound_and_unbound(name: str, bias: bool):
    provider = linear.OP.provider(name)
    assert provider.why_not(CPU) is None or name != "torch"
    if provider.why_not(CPU) is not None:
        assert provider.why_not(CPU), "a provider that cannot serve says why"
        return
    contract = Linear(96, 40, torch.float32, bias)
    x, *weights = sample(contract, 5)
    for launch in (provider.launcher(contract), lambda x, *_: provider.bind(contract, *weights)(x)):
        for error in check(contract, launch, (x, *weights)):
            assert error.problem is None, error


def test_packing_providers_of_linear_serve_cpus_and_float32():
    for name in ("onednn", "fbgemm_fp16"):
        provider = linear.OP.provider(name)
        assert provider.why_not(torch.device("cuda")) == "it serves CPUs, and this is cuda"
        assert provider.refuses(Linear(64, 64)) == "its activations are float32, not bfloat16"
        assert provider.refuses(Linear(64, 64, torch.float32)) is None


@pytest.mark.parametrize("contract", [WeightOnlyMm(96, 40), WeightOnlyMm(96, 40, torch.float32, bias=True)], ids=str)
def test_torch_widens_weights_within_the_contract(contract: WeightOnlyMm):
    for error in check(contract, weight_only_mm.OP.provider("torch").launcher(contract), sample(contract, 5)):
        assert error.problem is None, error


@pytest.mark.parametrize("op", [scaled_mm.OP, scaled_mm_blockwise.OP], ids=lambda op: op.name)
def test_vendors_say_why_they_cannot_serve_a_cpu(op):
    for provider in op.providers[3:]:
        assert provider.why_not(CPU) == "it needs an NVIDIA GPU, and this is cpu"


def test_vendors_refuse_shapes_in_words():
    torch_fp8 = scaled_mm.OP.provider("torch")
    assert torch_fp8.refuses(ScaledMm(100, 64)) == (
        "it takes in_features and out_features that are multiples of 16, not 100 and 64"
    )
    assert torch_fp8.refuses(ScaledMm(64, 64, dtype=torch.float32, bias=True)) == "it adds no bias to a float32 result"
    assert "multiples of 8" in (torch_fp8.refuses(ScaledMm(100, 64, torch.int8)) or "")
    assert scaled_mm.OP.provider("vllm").refuses(ScaledMm(64, 64, dtype=torch.float32)) is not None
    assert "multiples of 16" in (scaled_mm.OP.provider("cutlass").refuses(ScaledMm(100, 64)) or "")
    deep_gemm = scaled_mm_blockwise.OP.provider("deep_gemm")
    assert deep_gemm.refuses(ScaledMmBlockwise(192, 128)) == ("it takes in_features that are multiples of 128, not 192")
    assert deep_gemm.refuses(ScaledMmBlockwise(256, 128, torch.float16)) == "it makes bfloat16, not float16"
    assert deep_gemm.refuses(ScaledMmBlockwise(256, 128, block=64)) == "it takes blocks of 128, not 64"
    assert deep_gemm.refuses(ScaledMmBlockwise(256, 128, bias=True)) == "it adds no bias"
    assert deep_gemm.refuses(ScaledMmBlockwise(256, 128)) is None


class Recorder:
    """Stands in for a vendor's function and keeps what it was called with."""

    def __init__(self, result: torch.Tensor | None = None) -> None:
        self.result = result

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        return self.result


def module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    fake = types.ModuleType(name)
    fake.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, fake)


def test_torch_scaled_mm_gets_the_weight_column_major_and_its_scales_as_a_row(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch, "_scaled_mm", recorder)
    contract = ScaledMm(64, 32, bias=True)
    codes, scales, weight, weight_scales, bias = sample(contract, 5)
    scaled_mm.OP.provider("torch").launcher(contract)(codes, scales, weight, weight_scales, bias)
    a, b = recorder.args
    assert a is codes
    assert b.shape == (64, 32)
    assert b.stride() == (1, 64)
    assert b.data_ptr() == weight.data_ptr()
    assert recorder.kwargs["scale_a"].shape == (5, 1)
    assert recorder.kwargs["scale_b"].shape == (1, 32)
    assert recorder.kwargs["scale_b"].is_contiguous()
    assert recorder.kwargs["bias"] is bias
    assert recorder.kwargs["out_dtype"] == torch.bfloat16


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 40])
def test_torch_int8_keeps_the_contract_below_and_above_seventeen_rows(num_tokens: int, monkeypatch):
    real = torch._int_mm

    def strict(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.size(0) > 16, "CUDA's _int_mm refuses this"
        return real(a, b)

    monkeypatch.setattr(torch, "_int_mm", strict)
    contract = ScaledMm(64, 32, torch.int8, bias=True)
    inputs = sample(contract, num_tokens)
    for error in check(contract, scaled_mm.OP.provider("torch").launcher(contract), inputs):
        assert error.problem is None, error


def test_vllm_scaled_mm_is_called_in_its_order(monkeypatch):
    recorder = Recorder()
    module(monkeypatch, "vllm")
    module(monkeypatch, "vllm._C")
    monkeypatch.setattr(torch.ops, "_C", types.SimpleNamespace(cutlass_scaled_mm=recorder), raising=False)
    contract = ScaledMm(64, 32)
    codes, scales, weight, weight_scales = sample(contract, 5)
    y = scaled_mm.OP.provider("vllm").launcher(contract)(codes, scales, weight, weight_scales)
    out, a, b, a_scales, b_scales, bias = recorder.args
    assert out is y
    assert y.shape == (5, 32)
    assert y.dtype == torch.bfloat16
    assert (a is codes, a_scales is scales, b_scales is weight_scales, bias) == (True, True, True, None)
    assert b.stride() == (1, 64)


def test_vllm_blockwise_gets_scales_with_tokens_adjacent(monkeypatch):
    recorder = Recorder()
    module(monkeypatch, "vllm")
    module(monkeypatch, "vllm._C")
    monkeypatch.setattr(torch.ops, "_C", types.SimpleNamespace(cutlass_scaled_mm=recorder), raising=False)
    contract = ScaledMmBlockwise(256, 384)
    codes, scales, weight, weight_scales = sample(contract, 5)
    scaled_mm_blockwise.OP.provider("vllm").launcher(contract)(codes, scales, weight, weight_scales)
    assert torch.equal(recorder.args[3], scales)
    assert recorder.args[3].stride() == (1, 5)
    assert recorder.args[4].shape == (2, 3)


@pytest.mark.parametrize("num_tokens", [1, 5, 8])
@pytest.mark.parametrize("bound", [False, True])
def test_torch_blockwise_gets_the_layouts_that_cublaslt_wants(bound: bool, num_tokens: int, monkeypatch):
    padded = -(-num_tokens // 4) * 4
    recorder = Recorder(torch.arange(padded * 384).view(padded, 384))
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", recorder)
    contract = ScaledMmBlockwise(640, 384)
    codes, scales, weight, weight_scales = sample(contract, num_tokens)
    provider = scaled_mm_blockwise.OP.provider("torch")
    if bound:
        y = provider.bind(contract, weight, weight_scales)(codes, scales)
    else:
        y = provider.launcher(contract)(codes, scales, weight, weight_scales)
    assert torch.equal(y, recorder.result[:num_tokens])
    scale_a, scale_b = recorder.kwargs["scale_a"], recorder.kwargs["scale_b"]
    # Tokens are padded to a multiple of four with zeros.
    assert torch.equal(scale_a[:num_tokens], scales)
    assert torch.equal(recorder.args[0][:num_tokens].float(), codes.float())
    assert not scale_a[num_tokens:].any()
    assert recorder.args[0].shape == (padded, 640)
    assert scale_a.stride() == (1, padded)
    # 5 groups of K are padded to 8.
    assert scale_b.shape == (8, 3)
    assert scale_b.stride() == (1, 8)
    assert torch.equal(scale_b[:5], weight_scales.t())
    assert recorder.args[1].stride() == (1, 640)
    assert recorder.kwargs["scale_recipe_a"] == torch.nn.functional.ScalingType.BlockWise1x128
    assert recorder.kwargs["scale_recipe_b"] == torch.nn.functional.ScalingType.BlockWise128x128


def test_deep_gemm_is_called_with_pairs_and_without_rounding_scales(monkeypatch):
    recorder = Recorder()
    module(monkeypatch, "deep_gemm", fp8_gemm_nt=recorder)
    contract = ScaledMmBlockwise(256, 384)
    codes, scales, weight, weight_scales = sample(contract, 5)
    y = scaled_mm_blockwise.OP.provider("deep_gemm").launcher(contract)(codes, scales, weight, weight_scales)
    a, b, out = recorder.args
    assert all(x is y for x, y in zip((*a, *b, out), (codes, scales, weight, weight_scales, y), strict=True))
    assert recorder.kwargs == {"disable_ue8m0_cast": True}


def test_flashinfer_is_called_with_scales_by_name(monkeypatch):
    recorder = Recorder(torch.zeros(5, 384, dtype=torch.bfloat16))
    module(monkeypatch, "flashinfer")
    module(monkeypatch, "flashinfer.gemm", fp8_blockscale_gemm_sm90=recorder)
    contract = ScaledMmBlockwise(256, 384)
    codes, scales, weight, weight_scales = sample(contract, 5)
    y = scaled_mm_blockwise.OP.provider("flashinfer").launcher(contract)(codes, scales, weight, weight_scales)
    assert y is recorder.result
    assert recorder.args[0] is codes
    assert recorder.args[1] is weight
    assert recorder.kwargs["input_scale"] is scales
    assert recorder.kwargs["weight_scale"] is weight_scales


def test_hopper_only_libraries_name_the_capability_that_they_found(monkeypatch):
    monkeypatch.setattr(blockwise_providers, "needs_cuda", lambda device, least: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    why_not = scaled_mm_blockwise.OP.provider("torch").why_not(torch.device("cuda"))
    assert why_not == "it needs compute capability 9.0, and this GPU has 10.0"


MODEL_SHAPES = [(576, 960), (576, 49152), (2048, 4096), (2048, 2048), (2048, 12288), (6144, 2048), (12288, 4096),
                (4096, 24576), (4096, 151936)]  # fmt: skip


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "sm_86", "gfx90a"])
@pytest.mark.parametrize(("x_bytes", "weight_bytes", "group"), [(1, 1, None), (2, 2, None), (2, 1, None), (1, 1, 128)])
def test_untuned_configs_fit_their_target(name: str, x_bytes: int, weight_bytes: int, group: int | None):
    target = gemm_target(name)
    for k, n in MODEL_SHAPES:
        shape = GemmShape(k, n, x_bytes, weight_bytes, x_bytes != weight_bytes, group)
        for bucket in (16, 32, 64, 128, 256, 1024, 8192):
            config = default_config(shape, bucket, target)
            tile = shape, config.block_m, config.block_n, config.block_k
            assert shared_bytes(*tile, config.num_stages, target) <= target.shared_bytes
            assert config.block_k >= 32
            assert group is None or config.block_k <= group
            # Every split has some of K to add up.
            assert (config.split_k - 1) * split_span(k, config.split_k, config.block_k, group) < k


def test_a_decode_step_fills_an_h100_with_small_swapped_programs():
    target = gemm_target("sm_90")
    for k, n in MODEL_SHAPES[2:]:
        config = default_config(GemmShape(k, n, 1, 1), 16, target)
        programs = -(-n // config.block_n) * config.split_k
        assert config.swap_ab
        assert config.block_m == 16
        assert programs >= 128
    assert not default_config(GemmShape(4096, 4096, 1, 1), 1024, target).swap_ab
    assert not default_config(GemmShape(4096, 4096, 1, 1), 16, gemm_target("sm_80")).swap_ab


@pytest.mark.parametrize(("num_tokens", "bucket"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (9000, 8192)])
def test_sizes_of_m_share_configs_by_powers_of_two(num_tokens: int, bucket: int):
    assert token_bucket(num_tokens) == bucket
