"""The adapter to CUTLASS's Operator API, against a stand-in for ``cutlass.operators``.

The stand-in has the names, the signatures and the limits that nvidia-cutlass-operators 0.3.0 has in its source: kernels
with an epilogue exist for Blackwell alone, epilogues know no int32, and tensors come in lines of 16 bytes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.check import check
from parhelion.ops.contract import Contract
from parhelion.ops.cutlass_operators import CutlassGemm, gemm_arguments, likely_fastest
from parhelion.ops.linear import Linear
from parhelion.ops.registry import op
from parhelion.ops.scaled_mm import ScaledMm

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
HOPPER, BLACKWELL, GEFORCE = (9, 0), (10, 0), (12, 0)
STREAM = object()
Gpu = Callable[[tuple[int, int]], None]


class ProblemSize(NamedTuple):
    M: int
    N: int
    K: int
    L: int


class EpilogueArguments:
    def __init__(self, epilogue_fn: str, **kwargs: torch.Tensor) -> None:
        self.epilogue_fn = epilogue_fn
        self.tensors = kwargs


class GemmArguments:
    def __init__(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out: torch.Tensor,
        accumulator_type: torch.dtype,
        epilogue: EpilogueArguments | None = None,
    ) -> None:
        if epilogue is not None and accumulator_type == torch.int32:
            raise ValueError("No available conversion from type torch.int32 to a library type.")
        self.A, self.B, self.out = A, B, out
        self.accumulator_type, self.epilogue = accumulator_type, epilogue

    @property
    def problem_size(self) -> ProblemSize:
        return ProblemSize(self.A.shape[-2], self.B.shape[-1], self.A.shape[-1], 1)


class Operator:
    """Computes on the CPU what the kernel would, and keeps what it was called with."""

    designed_for_min_cc: ClassVar[int] = 90
    runs: ClassVar[list[dict[str, Any]]] = []
    compiled: ClassVar[list[str]] = []

    def __init__(self, tile: tuple[int, int], cluster: tuple[int, int] = (1, 1), workspace_bytes: int = 0) -> None:
        design = types.SimpleNamespace(tile_shape=(*tile, 64), cluster_shape=(*cluster, 1))
        name = f"{type(self).__name__}_{tile}_{cluster}"
        self.metadata = types.SimpleNamespace(design=design, operator_name=name)
        self.workspace_bytes = workspace_bytes

    def get_workspace_size(self, args: GemmArguments) -> types.SimpleNamespace:
        return types.SimpleNamespace(size_bytes=self.workspace_bytes, ptr_alignment=1)

    def compile(self, args: GemmArguments, target_sm: str | None = None) -> tuple[str, str | None]:
        name = self.metadata.operator_name
        self.compiled.append(name)
        return name, target_sm

    def run(
        self,
        args: GemmArguments,
        compiled_artifact: object = None,
        stream: object = None,
        workspace: object = None,
        assume_supported_args: bool = False,
    ) -> None:
        self.runs.append({"args": args, "artifact": compiled_artifact, "stream": stream})
        tensors = {} if args.epilogue is None else {k: t for k, t in args.epilogue.tensors.items() if k != "D"}
        for tensor in (args.A, args.B, args.out, *tensors.values()):
            assert in_lines_of_16_bytes(tensor), (tensor.shape, tensor.stride(), tensor.dtype)
        value = args.A.to(torch.float64) @ args.B.to(torch.float64)
        if args.epilogue is not None:
            scope: dict[str, Any] = {}
            exec(args.epilogue.epilogue_fn, scope)
            value = scope["epilogue"](value, **tensors)
            assert args.epilogue.tensors["D"] is args.out
        args.out.copy_(value)


class AmpereOperator(Operator):
    designed_for_min_cc: ClassVar[int] = 80


class EpilogueOperator(Operator):
    designed_for_min_cc: ClassVar[int] = 100


def in_lines_of_16_bytes(tensor: torch.Tensor) -> bool:
    """Compact, with a first dimension (in memory) that divides into lines of 16 bytes."""
    order = sorted(range(tensor.dim()), key=lambda dim: tensor.stride(dim))
    compact = tensor.permute(order[::-1]).is_contiguous() and tensor.stride(order[0]) == 1
    return compact and tensor.size(order[0]) * tensor.itemsize % 16 == 0


def get_operators(
    args: GemmArguments | None = None,
    metadata_filter: Callable[[Any], bool] | None = None,
    target_sm: str | None = None,
) -> list[Operator]:
    assert args is not None
    if args.A.dtype == torch.int8 and args.accumulator_type != torch.int32:
        return []
    if args.epilogue is not None:
        return [EpilogueOperator((128, 64))] if target_sm == "100a" else []
    if args.A.dtype == torch.float32:
        return []
    found: list[Operator] = []
    if target_sm in ("90a", "100a"):
        tiles = [(rows, columns) for rows in (64, 128) for columns in (64, 128, 256)]
        found += [Operator(tile, cluster) for tile in tiles for cluster in ((2, 1), (1, 1))]
    if args.A.dtype.itemsize == 2:
        found += [AmpereOperator((64, 64)), Operator((64, 64), workspace_bytes=1024)]
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """Makes this machine look as if it had that GPU and the package."""
    package = tmp_path / "nvidia_cutlass_operators-0.3.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.4\nName: nvidia-cutlass-operators\nVersion: 0.3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    api = {"EpilogueArguments": EpilogueArguments, "GemmArguments": GemmArguments, "get_operators": get_operators}
    for name, attributes in (("cutlass", {"__path__": []}), ("cutlass.operators", api)):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: STREAM)
    properties = types.SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(Operator, "runs", [])
    monkeypatch.setattr(Operator, "compiled", [])

    def set_capability(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    set_capability(HOPPER)
    return set_capability


def sample(contract: Contract, num_tokens: int) -> tuple[torch.Tensor, ...]:
    return contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(0))


def gemm_like(dtype: torch.dtype) -> GemmArguments:
    a = torch.empty(8, 64, dtype=dtype)
    return GemmArguments(a, a.t(), a, torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 6, 64])
@pytest.mark.parametrize("capability", [HOPPER, BLACKWELL])
@pytest.mark.parametrize(
    "contract",
    [
        ScaledMm(64, 96),
        ScaledMm(64, 96, bias=True),
        ScaledMm(64, 96, dtype=torch.float32, bias=True),
        ScaledMm(64, 96, torch.int8, torch.float16, bias=True),
        Linear(64, 96),
        Linear(64, 96, torch.float16, bias=True),
    ],
    ids=lambda contract: contract.key(),
)
def test_cutlass_keeps_the_contract(contract: Contract, capability: tuple[int, int], num_tokens: int, gpu: Gpu):
    gpu(capability)
    provider = op(contract.name).provider("cutlass")
    assert provider.why_not(CUDA) is None
    assert provider.refuses(contract) is None
    inputs = sample(contract, num_tokens)
    activations, weights = inputs[: -contract.num_weights], inputs[-contract.num_weights :]
    bound = provider.bind(contract, *weights)
    for launch in (provider.launcher(contract), lambda *inputs: bound(*activations)):
        for error in check(contract, launch, inputs):
            assert error.problem is None, error
    assert [run["stream"] for run in Operator.runs] == [STREAM, STREAM]


def test_scales_and_bias_are_applied_within_the_kernel_where_operators_have_epilogues(gpu: Gpu):
    gpu(BLACKWELL)
    contract = ScaledMm(64, 96, bias=True)
    y = op("scaled_mm").provider("cutlass").launcher(contract)(*sample(contract, 6))
    assert y.shape == (6, 96)
    (run,) = Operator.runs
    assert run["args"].out.dtype == torch.bfloat16
    assert run["args"].epilogue.tensors["bias"].shape == (96,)
    # Their scales are read in lines of 16 bytes.
    assert run["args"].epilogue.tensors["scales"].shape == (8, 1)


@pytest.mark.parametrize(("quant_dtype", "sums"), [(torch.float8_e4m3fn, torch.float32), (torch.int8, torch.int32)])
def test_sums_are_stored_whole_where_operators_have_no_epilogues(quant_dtype: torch.dtype, sums: torch.dtype, gpu: Gpu):
    contract = ScaledMm(64, 96, quant_dtype)
    op("scaled_mm").provider("cutlass").launcher(contract)(*sample(contract, 6))
    (run,) = Operator.runs
    assert run["args"].epilogue is None
    assert run["args"].accumulator_type == run["args"].out.dtype == sums
    assert run["args"].A.shape == (6, 64)


def test_bfloat16_needs_no_second_step_without_a_bias(gpu: Gpu):
    contract = Linear(64, 96)
    y = op("linear").provider("cutlass").launcher(contract)(*sample(contract, 6))
    assert Operator.runs[0]["args"].out is y


def test_activations_that_are_a_slice_of_wider_rows_are_copied(gpu: Gpu):
    contract = Linear(64, 96)
    x, weight = sample(contract, 6)
    wide = torch.cat([x, x], 1)
    y = op("linear").provider("cutlass").launcher(contract)(wide[:, :64], weight)
    assert torch.equal(y, contract.reference(x, weight))


def test_an_operator_is_compiled_once_for_the_architecture_it_runs_on(gpu: Gpu):
    contract = ScaledMm(2048, 4096)
    _, _, weight, weight_scales = sample(contract, 1)
    launch = op("scaled_mm").provider("cutlass").bind(contract, weight, weight_scales)
    for num_tokens in (1, 2, 5, 7, 5):
        launch(*sample(contract, num_tokens)[:2])
    assert len(Operator.compiled) == 1
    assert {run["artifact"] for run in Operator.runs} == {(Operator.compiled[0], "90a")}


def test_few_tokens_get_small_tiles_and_many_get_large_ones():
    operators = get_operators(gemm_like(torch.bfloat16), target_sm="90a")
    few = likely_fastest(operators, 8, 4096, 132).metadata.design
    many = likely_fastest(operators, 8192, 4096, 132).metadata.design
    assert few.tile_shape[:2] == (64, 64)
    assert many.tile_shape[:2] == (128, 256)
    assert few.cluster_shape == many.cluster_shape == (1, 1, 1)


def test_kernels_for_the_newest_architecture_come_first():
    small, large = AmpereOperator((64, 64)), Operator((128, 256))
    assert likely_fastest([small, large], 1, 64, 132) is large


def test_a_tile_shared_by_two_processors_takes_half_the_time_of_each():
    alone, shared = Operator((128, 128)), Operator((128, 128))
    shared.metadata.design.use_2cta_mma = True
    assert likely_fastest([alone, shared], 128, 128, 132) is shared
    # With as many tiles as processors it takes two waves of half the time: no gain, and the first stays.
    assert likely_fastest([alone, shared], 128, 128 * 132, 132) is alone


def test_operators_that_need_a_workspace_are_left_out(gpu: Gpu):
    contract = Linear(64, 96)
    op("linear").provider("cutlass").launcher(contract)(*sample(contract, 1))
    gpu(GEFORCE)
    op("linear").provider("cutlass").launcher(contract)(*sample(contract, 1))
    assert Operator.compiled == ["Operator_(64, 64)_(1, 1)", "AmpereOperator_(64, 64)_(1, 1)"]


def test_cutlass_refuses_in_words(gpu: Gpu):
    linear, scaled_mm = (op(name).provider("cutlass") for name in ("linear", "scaled_mm"))
    sizes = "it takes in_features that are multiples of {} and out_features that are multiples of 8, not {} and {}"
    assert scaled_mm.refuses(ScaledMm(72, 64)) == sizes.format(16, 72, 64)
    assert linear.refuses(Linear(72, 64)) is None
    assert linear.refuses(Linear(72, 60)) == sizes.format(8, 72, 60)
    assert linear.refuses(Linear(64, 64, torch.float32)) == "it takes bfloat16 and float16, not float32"
    gpu(GEFORCE)
    assert scaled_mm.refuses(ScaledMm(64, 64)) == "CUTLASS has no operator for float8_e4m3fn on sm_120a"
    gpu((8, 9))
    assert scaled_mm.why_not(CUDA) == "it needs compute capability 9.0, and this GPU has 8.9"


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    # Whoever imports it gets an error.
    monkeypatch.setitem(sys.modules, "cutlass.operators", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: HOPPER)


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("contract", [Linear(64, 64), ScaledMm(64, 64)], ids=lambda contract: contract.name)
def test_a_missing_package_is_named_as_pip_knows_it_and_shapes_are_judged_without_it(contract: Contract):
    provider = op(contract.name).provider("cutlass")
    assert provider.why_not(CUDA) == (
        "the package cutlass.operators is not installed: pip install nvidia-cutlass-operators"
    )
    assert provider.refuses(contract) is None


def test_what_no_operator_takes_is_an_error_that_names_the_sizes(gpu: Gpu):
    x, weight = torch.ones(3, 64), torch.ones(96, 64)
    with pytest.raises(ConfigError, match=r"no operator for M=3, N=96, K=64 on sm_90a: choose another provider"):
        CutlassGemm("90a", 132).run(gemm_arguments(x, weight, torch.empty(3, 96), torch.float32))
