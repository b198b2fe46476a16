"""Helion's own search as one of the tuner's strategies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.platform.measure import summarize
from parhelion.tuning.helion_search import FullEffort, HelionSearchError, Variant, gemm_config
from parhelion.tuning.plan import PlannedRow
from parhelion.tuning.programs import plain
from tests.tuning.tuner_fakes import Clock, World, planted

FP8 = ScaledMm(4096, 6144, torch.float8_e4m3fn, torch.bfloat16)
# Far from what the static model proposes.
BEST = GemmConfig(64, 32, 512, swap_ab=False, split_k=8, num_warps=2, num_stages=1)
ROW = PlannedRow(FP8, 64, 36)


@dataclass
class Searcher:
    """Finds the same for every row, in the time that it is given."""

    clock: Clock
    finds: GemmConfig | None = BEST
    asked: list[tuple[Contract, int, float]] = field(default_factory=list)

    def __call__(self, contract: Contract, num_tokens: int, seconds: float) -> FullEffort:
        self.asked.append((contract, num_tokens, seconds))
        self.clock.now += seconds
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
    it.tune(budget_s=500.0, effort="quick", helion_search=searcher, helion_search_s=300.0)
    assert len(searcher.asked) == 1


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
    swapped = gemm_config(Variant("split", True), choices | {"pid_type": "persistent_blocked"})
    assert swapped == GemmConfig(32, 64, 256, True, 4, 8, 4, 8, "persistent_blocked")
    standard = gemm_config(Variant("whole", False), {"block_sizes": [128, 64, 32], "pid_type": "xyz"})
    assert standard == GemmConfig(64, 32, 128, num_warps=4, num_stages=1)
