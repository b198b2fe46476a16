"""Programmatic dependent launch: every tile program of a layer starts its successor, reads weights, and then waits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parhelion.ops.contract import Contract
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import launch_module
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.per_token_group_fp8_quant import PerTokenGroupFp8Quant
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.ops.weight_only_mv.config import MvConfig
from parhelion.tuning.cross_compile import specialize
from parhelion.tuning.record import GeneratedCode, Launch, record

SWAPPED = GemmConfig(16, 64, 128, swap_ab=True, split_k=2, num_stages=3, programmatic=True, ahead=1)
STANDARD = GemmConfig(16, 64, 128, num_stages=3, programmatic=True, ahead=2)
TWO_CODES = MvConfig(64, 256, 4, 1, programmatic=True, on_matrix_unit=True, split_k=2, num_stages=3)
CASES: tuple[tuple[Contract, Any], ...] = (
    (RmsNorm(512), None),
    (FusedAddRmsNorm(512), None),
    (RmsNormDynamicPerTokenQuant(512, add_residual=True), None),
    (SiluAndMul(512), None),
    (PerTokenGroupFp8Quant(512), None),
    (FusedQkNormRope(4, 2, 64, 1e-6, 16, 128), None),
    (RopeAndCache(4, 2, 64, 16, 128), None),
    (PagedAttention(4, 2, 64, 16, 0.125), None),
    (ScaledMm(2048, 256), SWAPPED),
    (ScaledMm(2048, 256), STANDARD),
    (WeightOnlyMv(2048, 256), TWO_CODES),
)


def ptx(launch: Launch, folder: Path) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    how = specialize(launch)
    source = ASTSource(launch.function, how.signature, how.constants, how.attributes)
    text: str = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options).asm["ptx"]
    return text


@pytest.mark.parametrize(("contract", "config"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_a_program_starts_its_successor_and_waits_before_it_writes(
    contract: Contract, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if config is None:
        usual = launch_module(contract.name).default_config(contract, 16, gemm_target("sm_90"))
        config = replace(usual, programmatic=True)
    for launch in record(contract, 11, "sm_90", GeneratedCode(), config):
        text = ptx(launch, tmp_path)
        trigger, wait = text.index("griddepcontrol.launch_dependents"), text.index("griddepcontrol.wait")
        writes = [match.start() for match in re.finditer(r"\bst\.global|\bred\.global|\batom\.global", text)]
        assert trigger < wait < min(writes)
        if config in (SWAPPED, STANDARD, TWO_CODES):
            # The wide products take 64 rows of the left operand, of which x has too few.
            assert ("wgmma.mma_async" in text) == (config != STANDARD)
            # The first steps of the weight are on their way before the wait, and the loop behind it is pipelined.
            assert "ld.global" in text[trigger:wait]
            assert "cp.async" in text[wait:]
            assert "cp.async" not in text[:wait]


def test_without_it_a_program_has_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for launch in record(ScaledMm(512, 256), 11, "sm_90", GeneratedCode()):
        assert "griddepcontrol" not in ptx(launch, tmp_path)
