"""Helion's own search as one of the tuner's strategies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.platform.measure import summarize
from parhelion.tuning.helion_search import FullEffort, HelionSearchError, Variant, gemm_config
from parhelion.tuning.plan import PlannedRow
from parhelion.tuning.programs import plain, programs_of
from parhelion.tuning.record import GeneratedCode
from parhelion.tuning.target import target
from parhelion.tuning.tune import TuneProgress, least_budget_s, most_searches
from tests.tuning.tuner_fakes import Clock, World, planted

FP8 = ScaledMm(4096, 6144, torch.float8_e4m3fn, torch.bfloat16)
# Far from what the static model proposes.
BEST = GemmConfig(64, 32, 512, swap_ab=False, split_k=8, num_warps=2, num_stages=1)
ROW = PlannedRow(FP8, 64, 36)


@dataclass
class Searcher:
    """Finds the same for every row, in the time that it is given and a little more."""

    clock: Clock
    finds: GemmConfig | None = BEST
    over_s: float = 0.0
    asked: list[tuple[Contract, int, float]] = field(default_factory=list)

    def __call__(self, contract: Contract, num_tokens: int, seconds: float) -> FullEffort:
        self.asked.append((contract, num_tokens, seconds))
        self.clock.now += seconds + self.over_s
        if self.finds is None:
            raise HelionSearchError("out of memory")
        return FullEffort(summarize([1.0]), "whole: a config", seconds, gemm=self.finds)


def world(folder: Path, *rows: PlannedRow) -> World:
    return World(folder, rows or (ROW,), planted(BEST, slope=0.3))


def test_what_it_finds_is_timed_and_serves_if_it_is_the_fastest(tmp_path: Path) -> None:
    without = world(tmp_path / "a").tune(effort="quick").pack
    assert without is not None
    assert without.rows[0].best.config != plain(BEST)
    it = world(tmp_path / "b")
    searcher = Searcher(it.clock)
    result = it.tune(effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert result.pack is not None
    assert result.pack.rows[0].best.config == plain(BEST)
    assert searcher.asked == [(FP8, 64, 300.0)]
    assert any("asked for 1 products, 300 s each; its own config is the fastest" in note for note in result.notes)


def test_it_is_not_asked_unless_it_is_given_time_or_for_what_it_has_no_kernel_for(tmp_path: Path) -> None:
    searcher = Searcher(Clock())
    it = world(tmp_path / "a")
    it.tune(effort="quick", helion_search=searcher)
    it = world(tmp_path / "b", replace(ROW, contract=replace(FP8, quant_dtype=torch.int8)))
    result = it.tune(effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert searcher.asked == []
    assert any("was not asked" in note for note in result.notes)


def test_a_search_that_would_end_too_late_is_not_begun(tmp_path: Path) -> None:
    rows = (ROW, PlannedRow(replace(FP8, out_features=4096), 64, 36))
    it = world(tmp_path, *rows)
    searcher = Searcher(it.clock)
    it.tune(budget_s=700.0, effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert len(searcher.asked) == 1


@pytest.mark.parametrize("over_s", [20.0, 90.0])
def test_what_was_found_is_timed_however_late_it_came(tmp_path: Path, over_s: float) -> None:
    rows = tuple(PlannedRow(replace(FP8, out_features=6144 + 512 * each), 64, 36) for each in range(4))
    it = world(tmp_path, *rows)
    searcher = Searcher(it.clock, over_s=over_s)
    result = it.tune(budget_s=2000.0, effort="quick", helion_search=searcher, helion_search_s=300.0)
    # What the first one took beyond its time is expected of the next.
    assert len(searcher.asked) == 4
    assert it.clock.now < 2000.0
    assert result.pack is not None
    chosen = {row.contract: row.best.config for row in result.pack.rows}
    assert all(chosen[contract.key()] == plain(BEST) for contract, *_ in searcher.asked)


def test_time_is_left_for_it_if_candidates_would_take_all_of_it(tmp_path: Path) -> None:
    rows = tuple(PlannedRow(replace(FP8, out_features=1024 * each), 64, 36) for each in range(1, 40))
    it = world(tmp_path, *rows)
    it.timer.trial_s = 2.0
    searcher = Searcher(it.clock, over_s=50.0)
    budget_s = least_budget_s(300.0)
    it.tune(budget_s=budget_s, helion_search=searcher, helion_search_s=300.0)
    assert len(searcher.asked) == 1
    assert most_searches(300.0, budget_s) == 1
    assert it.clock.now < budget_s + 60.0


def test_the_row_that_it_is_asked_for_is_shown(tmp_path: Path) -> None:
    it = world(tmp_path)
    shown: list[tuple[str, int | None, int]] = []
    searcher = Searcher(it.clock)

    def progress(now: TuneProgress) -> None:
        row = None if now.current is None else now.current.bucket
        shown.append((now.stage, row, len(searcher.asked)))

    it.tune(effort="quick", helion_search=searcher, helion_search_s=300.0, progress=progress)
    assert ("Helion's search", 64, 0) in shown


def test_interrupted_it_writes_what_is_known_and_searches_again(tmp_path: Path) -> None:
    it = world(tmp_path)

    def interrupted(contract: Contract, num_tokens: int, seconds: float) -> FullEffort:
        raise KeyboardInterrupt

    result = it.tune(effort="quick", helion_search=interrupted, helion_search_s=300.0)
    assert result.interrupted
    assert result.pack is not None
    again = world(tmp_path)
    searcher = Searcher(again.clock)
    again.tune(effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert len(searcher.asked) == 1


def test_its_time_counts_as_the_devices(tmp_path: Path) -> None:
    it = world(tmp_path)
    result = it.tune(effort="quick", helion_search=Searcher(it.clock), helion_search_s=300.0)
    assert result.pack is not None
    assert 300.0 < result.pack.ledger.gpu_s <= result.pack.ledger.tune_s


def test_a_tile_that_no_candidate_has_is_timed_as_it_was_found(tmp_path: Path) -> None:
    # At M = 64 candidates hold all tokens.
    found = replace(BEST, block_m=8, block_n=16, num_warps=1, num_stages=8, block_k=256, group_m=64)
    it = world(tmp_path)
    it.tune(effort="quick", helion_search=Searcher(it.clock, found), helion_search_s=300.0)
    assert found in {config for _, _, config in it.timer.configs()}


def test_going_on_does_not_search_again(tmp_path: Path) -> None:
    it = world(tmp_path)
    it.tune(effort="quick", helion_search=Searcher(it.clock), helion_search_s=300.0)
    again = world(tmp_path)
    searcher = Searcher(again.clock)
    result = again.tune(effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert searcher.asked == []
    assert result.pack is not None
    assert result.pack.rows[0].best.config == plain(BEST)


@pytest.mark.parametrize("finds", [None, replace(BEST, block_m=256, block_n=256, num_stages=7)])
def test_what_fails_or_does_not_fit_leaves_the_rest_as_it_is(tmp_path: Path, finds: GemmConfig | None) -> None:
    expected = world(tmp_path / "a").tune(effort="quick").pack
    it = world(tmp_path / "b")
    result = it.tune(effort="quick", helion_search=Searcher(it.clock, finds), helion_search_s=300.0)
    assert expected is not None
    assert result.pack is not None
    assert result.pack.rows[0].best == expected.rows[0].best
    assert any("out of memory" in note for note in result.notes) == (finds is None)


def test_its_choices_are_those_of_the_tile_program_that_serves() -> None:
    choices = {"block_sizes": [256, 64, 32], "num_warps": 8, "num_stages": 4, "l2_groupings": [8], "split_k": 4}
    swapped = gemm_config(Variant("split", True), choices | {"pid_type": "persistent_blocked"}, 4096)
    assert swapped == GemmConfig(32, 64, 256, True, 4, 8, 4, 8, "persistent_blocked")
    standard = gemm_config(Variant("whole", False), {"block_sizes": [128, 64, 32], "pid_type": "xyz"}, 4096)
    assert standard == GemmConfig(64, 32, 128, num_warps=4, num_stages=1)
    # A part of 25600 that is a power of two: 4096, so that there are seven and not eight.
    assert gemm_config(Variant("split", True), choices | {"split_k": 8}, 25600).split_k == 7


# What searches of five minutes found on an H200: tiles, warps and stages that no candidate has.
@pytest.mark.parametrize(
    ("num_tokens", "contract", "variant", "choices"),
    [
        (
            8,
            replace(FP8, in_features=5120, out_features=51200),
            Variant("whole", True),
            {"block_sizes": [256, 16, 8], "num_stages": 4, "num_warps": 1, "l2_groupings": [16], "pid_type": "flat"},
        ),
        (
            256,
            replace(FP8, in_features=25600, out_features=5120),
            Variant("split", True),
            {"block_sizes": [128, 128, 128], "num_stages": 4, "num_warps": 16, "l2_groupings": [64], "split_k": 2}
            | {"pid_type": "persistent_interleaved"},
        ),
    ],
    ids=["one warp", "sixteen warps"],
)
def test_what_it_found_on_a_gpu_is_built_as_the_program_that_serves(
    num_tokens: int, contract: ScaledMm, variant: Variant, choices: dict[str, Any], tmp_path: Path
) -> None:
    config = gemm_config(variant, choices, contract.in_features)
    bucket = max(16, num_tokens)
    it = World(tmp_path, (PlannedRow(contract, num_tokens, 36),), planted(BEST))
    it.tune(effort="quick", helion_search=Searcher(it.clock, config), helion_search_s=300.0)
    assert (contract, bucket, config) in it.compiler.requests
    [program] = programs_of(contract, bucket, config, target("sm_90"), GeneratedCode(132))
    assert program.data.startswith(b"\x7fELF")
    assert program.binary.stack_bytes == 0
