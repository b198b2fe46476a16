"""The Gluon program of ``fused_rope_attention``: built for a Hopper, tuned beside Helion's, and launched on a GPU."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from parhelion.ops.check import compare
from parhelion.ops.decode_attention.launch import candidates, default_config, launch
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import build_inputs as build_helion_inputs
from parhelion.ops.fused_rope_attention.launch import default_config as default_helion_config
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.oracle import Oracle
from parhelion.ops.paged_attention.apart import siblings_apart
from parhelion.ops.quantize import FP8
from parhelion.ops.source_hash import source_hash
from parhelion.packs.store import read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.jobs import Trial
from parhelion.tuning.neighbours import neighbours
from parhelion.tuning.plan import PlannedRow
from parhelion.tuning.programmatic_twins import twins
from parhelion.tuning.programs import Program, plain, programs_of
from parhelion.tuning.prune import ranked, why_dropped
from parhelion.tuning.record import GeneratedCode
from parhelion.tuning.seeds import fitted
from parhelion.tuning.target import target
from parhelion.tuning.timed_config import Timed
from parhelion.tuning.timing_jobs import launcher_of
from tests.tuning.test_programs import Finder, evaluated
from tests.tuning.tuner_fakes import SM_90, World

NORMED = FusedRopeAttention(16, 8, 128, 16, 4096, 128**-0.5, 1e-6)
CONTRACTS = (NORMED, replace(NORMED, num_heads=32, epsilon=None), replace(NORMED, quant_dtype=FP8))
PROGRAM = "decode_attention.decode_attention"

WITH_GUESSES = (
    [(1, 1), (2, 2)],
    [(700, 4)],
    [(3, 3), (0, 1), (17, 2), (0, 1)],
    [(65, 4), (129, 3), (1, 1), (700, 4)] * 5,
    [(48, 2), (63, 2), (64, 2), (66, 2), (3000, 3)],
    [(31, 1)] * 17,
)
"""Tokens of each sequence, and how many of them, the last, a step computes; with one of none, padding."""

LENGTHS = (1, 2, 15, 16, 17, 33, 64, 65, 129, 700, 1024, 4096)
"""Of rows, those at the bounds of splits and tiles among them."""


@pytest.fixture(autouse=True)
def _as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")


@pytest.fixture(scope="module")
def built() -> dict[int, list[Program]]:
    """The programs of a measured step by the warps of the Gluon one."""
    configs = {warps: replace(default_config(NORMED, 16, SM_90), gluon_warps=warps) for warps in (2, 4)}
    return {
        warps: programs_of(NORMED, 16, Timed(config), target("sm_90"), GeneratedCode())
        for warps, config in configs.items()
    }


def test_it_is_built_and_fits(built: dict[int, list[Program]]):
    for warps, programs in built.items():
        own = [each.binary for each in programs if each.binary.kernel == PROGRAM]
        # With one split and with several; those who put several together are Helion's.
        assert len(own) == 2
        assert {each.binary.kernel for each in programs} == {PROGRAM, "paged_attention.paged_attention_combine"}
        for binary in own:
            assert (binary.symbol, binary.num_warps, binary.programmatic) == ("_gluon_decode_attention", warps, True)
            assert (binary.scratch_bytes, binary.stack_bytes) == (0, 0)
        assert why_dropped(programs, target("sm_90")) is None


def test_with_siblings_it_is_built_and_fits_any_processor(monkeypatch: pytest.MonkeyPatch):
    steps = [each for each in build_helion_inputs(NORMED, 4) if each[4].max_query_len == 1]
    monkeypatch.setattr("parhelion.ops.decode_attention.launch.build_helion_inputs", lambda *_: list(steps))
    config = replace(default_config(NORMED, 4, SM_90), programs=1)
    programs = programs_of(NORMED, 4, config, target("sm_90"), GeneratedCode())
    own = [each.binary for each in programs if each.binary.kernel == PROGRAM]
    # For heads of a sequence's rows that are 8 columns and 16, with one split and with several; and without siblings.
    assert len(own) == 5
    assert all((each.num_warps, each.stack_bytes) == (4, 0) for each in own)
    assert max(each.shared_bytes for each in own) <= 99 << 10


def test_a_launch_finds_it_for_any_rows_and_splits(built: dict[int, list[Program]]):
    config = default_config(NORMED, 16, SM_90)
    generator = torch.Generator().manual_seed(0)
    for num_tokens, programs, splits in ((1, 1, 1), (1, 256, 32), (7, 256, 4), (16, 1, 1), (16, 512, 4)):
        find = Grids(built[4])
        inputs = NORMED.sample_inputs(num_tokens, torch.device("cpu"), generator)
        launch(NORMED, find, replace(config, programs=programs), *inputs)
        assert find.grids[PROGRAM] == (num_tokens * 8 * splits,)
        assert ("paged_attention.paged_attention_combine" in find.grids) == (splits > 1)


class Grids(Finder):
    """Also works the grids of what it finds out."""

    def __init__(self, programs: list[Program]) -> None:
        super().__init__(programs, "sm_90")
        self.grids: dict[str, tuple[int, ...]] = {}

    def __call__(self, kernel: str, config: Any, *arguments: Any) -> None:
        super().__call__(kernel, config, *arguments)
        recipe = self.launched[-1].recipe
        names = dict(zip(recipe.parameters, arguments, strict=True))
        self.grids[kernel] = tuple(evaluated(each, names) for each in recipe.grid)


def test_the_tuner_tries_both_programs(tmp_path: Path):
    own = set(candidates(NORMED, 16, SM_90))
    first = ranked(NORMED, 16, SM_90)[:6]
    assert own & set(first)
    assert set(first) - own

    def time_us(contract: Any, size: int, provider: str, config: Any) -> float:
        if provider != "gluon":
            return 60.0
        return 30.0 + abs(config.programs - 64) / 64 + 5 * (config.gluon_warps != 2) + 5 * (config.ring != 6)

    it = World(tmp_path, (PlannedRow(NORMED, 16, 28, ("torch",)),), time_us)
    result = it.tune()
    assert result.pack is not None
    (row,) = result.pack.rows
    best = replace(default_config(NORMED, 16, SM_90), programs=64, gluon_warps=2, ring=6)
    assert (row.op, row.best.provider, row.best.config) == ("fused_rope_attention", "gluon", plain(best))
    assert {each.provider for each in row.runners_up} >= {"torch"}
    assert {provider for _, _, provider, _, _ in it.timer.trials} == {"helion", "gluon", "torch"}
    names = ("fused_rope_attention", "fused_rope_attention.gluon")
    assert result.pack.source_hashes == {name: source_hash(name) for name in names}
    assert verify(read_pack(tmp_path / "tuned"), result.pack.source_hashes) == []


def test_its_configs_stay_among_themselves():
    config = candidates(NORMED, 16, SM_90)[1]
    assert set(neighbours(config, NORMED, 16, SM_90)) <= set(candidates(NORMED, 16, SM_90))
    assert twins(config, NORMED, 16, SM_90) == [config]
    assert len(twins(default_helion_config(NORMED, 16, SM_90), NORMED, 16, SM_90)) > 1
    assert fitted(config, NORMED, 64, SM_90) == config
    assert fitted(config, NORMED, 512, SM_90) is None
    assert fitted(config, replace(NORMED, head_dim=64), 16, SM_90) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
@pytest.mark.parametrize("contract", CONTRACTS, ids=["head norms", "plain, group of 4", "quantized"])
@pytest.mark.parametrize("of_config", [{"programs": 1}, {"programs": 512}])
def test_on_a_gpu_it_computes_what_the_contract_says(
    contract: FusedRopeAttention, of_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    device = torch.device("cuda")
    here = target_of_device(device)
    found = [replace(each, **of_config) for each in candidates(contract, 16, here)]
    assert found, f"it is not built for {here.name}"
    lens = "parhelion.ops.fused_rope_attention.contract.sampled_lens"
    monkeypatch.setattr(lens, lambda num_tokens: ([1] * num_tokens, list(LENGTHS[:num_tokens])))
    for config in dict.fromkeys(found):
        programs = tuple(programs_of(contract, 16, Timed(config), target(here.name), GeneratedCode()))
        computed = launcher_of(contract, Trial("gluon", config, programs), device)
        for num_tokens in (1, 3, len(LENGTHS)):
            inputs = contract.sample_inputs(num_tokens, device, torch.Generator().manual_seed(num_tokens))
            problems = [each.problem for each in Oracle(contract, inputs).compare(computed)]
            assert problems == [None] * len(problems), (config, num_tokens)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
@pytest.mark.parametrize("contract", CONTRACTS, ids=["head norms", "plain, group of 4", "quantized"])
@pytest.mark.parametrize("sequences", WITH_GUESSES, ids=str)
def test_on_a_gpu_rows_of_one_sequence_are_computed_as_the_contract_says(
    contract: FusedRopeAttention, sequences: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    device = torch.device("cuda")
    lens = [count for _, count in sequences], [max(1, length) for length, _ in sequences]
    monkeypatch.setattr("parhelion.ops.fused_rope_attention.contract.sampled_lens", lambda count: lens)
    num_tokens = sum(lens[0])
    inputs = contract.sample_inputs(num_tokens, device, torch.Generator().manual_seed(num_tokens))
    qkv, positions, slots, cache, batch, *weights = inputs
    padding = [int(batch.query_start_loc[row]) for row, (length, _) in enumerate(sequences) if length == 0]
    slots[padding], positions[padding] = -1, 0
    seq_lens = torch.tensor([length for length, _ in sequences], dtype=torch.int32, device=device)
    apart = siblings_apart(replace(batch, seq_lens=seq_lens))
    if apart.max_siblings == 1:
        apart = replace(apart, max_siblings=2, row_slots=torch.arange(num_tokens, dtype=torch.int32, device=device))
    expected = contract.reference(qkv, positions, slots, cache.clone(), replace(batch, seq_lens=seq_lens), *weights)
    launch = launcher_of(contract, built_on_a_gpu(contract), device)
    runs = [launch(qkv, positions, slots, cache.clone(), apart, *weights) for _ in range(2)]
    for run in runs:
        # What is left for padding rows nobody reads.
        for ours, theirs in zip(run[:-1], expected[:-1], strict=True):
            ours[padding] = theirs[padding]
    found, again = runs
    problems = [each.problem for each in compare(contract, found, expected)]
    assert problems == [None] * len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, again, strict=True))


@functools.cache
def built_on_a_gpu(contract: FusedRopeAttention) -> Trial:
    """All programs of steps of up to 16 rows, which are those of any number of them."""
    here = target_of_device(torch.device("cuda"))
    config = default_config(contract, 16, here)
    return Trial("gluon", config, tuple(programs_of(contract, 16, config, target(here.name), GeneratedCode())))
