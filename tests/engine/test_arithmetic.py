"""In which dtypes a model computes, and which providers that takes: every dtype on a CPU, and what a GPU changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.arithmetic import Arithmetic, choose_arithmetic
from parhelion.engine.load import load_engine
from parhelion.errors import ConfigError
from parhelion.ops.linear import Linear
from parhelion.ops.linear.cpu import FbgemmHalfLinear, OneDnnLinear
from parhelion.ops.resolve import Resolver

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def choose(device: torch.device = CPU, **options: Any) -> Arithmetic:
    return choose_arithmetic(EngineConfig(model="unused", **options), device)


def multiplies(arithmetic: Arithmetic) -> str:
    """Who serves an unquantized linear layer."""
    resolver = Resolver(CPU, arithmetic.kernels, arithmetic.preferences)
    return resolver.provider(Linear(32, 48, arithmetic.dtype)).name


@pytest.fixture
def with_fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FbgemmHalfLinear, "why_not", lambda self, device: None)


@pytest.fixture
def without_fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FbgemmHalfLinear, "why_not", lambda self, device: "no FBGEMM")


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_half_the_weights_memory_and_float32s_arithmetic_where_fbgemm_serves(with_fbgemm: None, dtype: str) -> None:
    arithmetic = choose(dtype=dtype)
    assert (arithmetic.dtype, arithmetic.storage_dtype) == (torch.float32, torch.float16)
    assert multiplies(arithmetic) == "fbgemm_fp16"


@pytest.mark.parametrize(
    ("dtype", "expected", "provider"),
    [
        ("auto", torch.float32, "onednn"),
        ("float32", torch.float32, "onednn"),
        ("float16", torch.float16, "torch"),
        ("bfloat16", torch.bfloat16, "torch"),
    ],
)
def test_without_fbgemm_the_dtype_is_that_asked_for_and_auto_is_float32(
    without_fbgemm: None, monkeypatch: pytest.MonkeyPatch, dtype: str, expected: torch.dtype, provider: str
) -> None:
    monkeypatch.setattr(OneDnnLinear, "why_not", lambda self, device: None)
    arithmetic = choose(dtype=dtype)
    assert arithmetic.dtype == arithmetic.storage_dtype == expected
    assert multiplies(arithmetic) == provider


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fbgemm_does_not_change_a_dtype_that_was_asked_for(with_fbgemm: None, dtype: str) -> None:
    arithmetic = choose(dtype=dtype)
    assert arithmetic.dtype == arithmetic.storage_dtype == getattr(torch, dtype)
    assert multiplies(arithmetic) != "fbgemm_fp16"


def test_float32_falls_back_to_torch_without_onednn(without_fbgemm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneDnnLinear, "missing", lambda self: "no oneDNN")
    assert multiplies(choose(dtype="float32")) == "torch"


def test_kernels_by_hand_come_before_what_the_dtype_prefers() -> None:
    arithmetic = choose(dtype="float32", kernels=("linear=torch",))
    assert arithmetic.kernels == {"linear": "torch"}
    assert multiplies(arithmetic) == "torch"


def test_a_gpu_computes_in_bfloat16_unless_told_otherwise_and_fuses() -> None:
    assert choose(CUDA).dtype == choose(CUDA).storage_dtype == torch.bfloat16
    assert choose(CUDA, dtype="float16").dtype == torch.float16
    assert choose(CUDA).preferences == {}
    assert (choose(CUDA).fusion, choose().fusion) == ("fused", "plain")
    assert (choose(CUDA, fusion="plain").fusion, choose(fusion="fused").fusion) == ("plain", "fused")


def test_compile_changes_neither_dtypes_nor_providers_of_the_ordinary_steps() -> None:
    assert choose(compile=True, kernels=("silu_and_mul=inductor",)) == choose(kernels=("silu_and_mul=inductor",))


def test_compile_on_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile is for CPUs"):
        choose(CUDA, compile=True)


def test_compile_without_a_compiler_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile is not to be had here: .*install g\+\+"):
        load_engine(EngineConfig(model="unused", device="cpu", compile=True), tmp_path, "unused")
