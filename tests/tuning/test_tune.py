"""The tuner as a whole, on a device whose times are known: what it finds, when it stops, what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parhelion.errors import ConfigError
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.packs.format import Pack, Row
from parhelion.packs.store import read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.neighbours import neighbours
from parhelion.tuning.plan import PlannedRow
from parhelion.tuning.programmatic_twins import is_programmatic, twins
from parhelion.tuning.programs import plain
from parhelion.tuning.prune import ranked
from parhelion.tuning.row_state import RowState
from parhelion.tuning.search import FULL
from parhelion.tuning.step_tuning import StepJob, StepResult
from parhelion.tuning.target import target
from tests.packs import sample
from tests.tuning.tuner_fakes import LAUNCH_US, SM_90, World, planted, steps_apart

GEMM = ScaledMm(4096, 6144)
ROW = PlannedRow(GEMM, 16, 36, ("torch",))
NORM = PlannedRow(RmsNorm(4096), 16, 72, ("torch", "vllm"), ("inductor",))
BEST = GemmConfig(16, 64, 256, swap_ab=True, split_k=4, num_warps=4, num_stages=4)


def world(folder: Path, *rows: PlannedRow, best: GemmConfig = BEST) -> World:
    return World(folder, rows or (ROW,), planted(best))


def only(pack: Pack | None) -> Row:
    assert pack is not None
    [row] = pack.rows
    return row


def assert_same(pack: Pack | None, other: Pack | None) -> None:
    """But for when they were made."""
    assert pack is not None
    assert other is not None
    assert plain(pack.rows) == plain(other.rows)
    assert plain(pack.binaries) == plain(other.binaries)
    assert pack.source_hashes == other.source_hashes
    assert pack.models == other.models
    assert pack.ledger.launch_us == other.ledger.launch_us == LAUNCH_US
    for name in ("gpu_s", "compile_s", "num_compiled", "num_dropped", "num_timed", "tune_s"):
        # Seconds are rounded to tenths.
        assert getattr(pack.ledger, name) == pytest.approx(getattr(other.ledger, name), abs=0.11)


def test_the_planted_best_is_found_among_few_of_the_candidates(tmp_path: Path):
    candidates = ranked(GEMM, 16, SM_90)
    assert BEST in candidates
    assert len(candidates) > 200
    it = world(tmp_path)
    row = only(it.tune().pack)
    assert (row.best.provider, row.best.config) == ("helion", plain(BEST))
    assert row.evaluations == len(it.timer.configs()) <= 60
    assert row.chosen_by == "row"
    assert row.untuned_us > row.best.time_us > row.floor_us > 0
    assert {each.provider for each in row.runners_up} == {"helion", "torch"}
    stored = read_pack(tmp_path / "tuned")
    assert [binary.file for binary in stored.pack.binaries] == list(row.best.binaries)
    assert stored.binary(stored.pack.binaries[0])


def test_refining_finds_a_best_that_no_list_of_candidates_has(tmp_path: Path):
    best = replace(BEST, num_stages=7, split_k=5)
    assert best not in ranked(GEMM, 16, SM_90)
    found = only(world(tmp_path, best=best).tune(effort="full").pack).best.config
    assert found is not None
    # K is divided as evenly as whole steps allow, which 5 does not come out of.
    assert found["num_stages"] == 7
    assert steps_apart(GemmConfig(**found), best) < 0.6


def test_what_is_near_its_floor_is_left_alone(tmp_path: Path):
    it = world(tmp_path)
    it.timer.time_us = lambda contract, size, provider, config: 1.03 * it.timer.floor_us(contract, size)
    row = only(it.tune().pack)
    assert row.evaluations == 1
    assert len(it.compiler.requests) == 1


def test_what_costs_the_step_nothing_is_left_alone(tmp_path: Path):
    cheap = PlannedRow(ScaledMm(1024, 1024), 16, 1)
    costly = replace(ROW, weight=1000)
    it = world(tmp_path, cheap, costly)
    pack = it.tune().pack
    assert pack is not None
    evaluations = {row.contract: row.evaluations for row in pack.rows}
    assert evaluations[cheap.contract.key()] == 1
    assert evaluations[costly.contract.key()] > 20


def test_rows_are_searched_in_the_order_of_what_the_step_can_gain(tmp_path: Path):
    light, heavy = PlannedRow(ScaledMm(4096, 4096), 16, 30), PlannedRow(ScaledMm(4096, 8192), 16, 30)
    it = world(tmp_path, light, heavy)
    it.tune()
    searched = [contract for contract, _, _, _, rounds in it.timer.trials if rounds < FULL.rounds]
    assert searched[0] == heavy.contract.key()


def test_the_budget_ends_it_with_all_rows_measured_once(tmp_path: Path):
    rows = tuple(PlannedRow(ScaledMm(4096, 512 * n), 16, 36, ("torch",)) for n in range(4, 12))
    it = world(tmp_path, *rows)
    # Two trials a row in the first pass.
    result = it.tune(budget_s=len(rows) * 2 * it.timer.trial_s + 1.0)
    assert result.pack is not None
    assert len(result.pack.rows) == len(rows)
    assert it.clock.now <= len(rows) * 2 * it.timer.trial_s + 1.0 + it.timer.trial_s
    assert result.notes == ()


def test_a_budget_that_is_too_small_for_that_is_said_to_be(tmp_path: Path):
    rows = tuple(PlannedRow(ScaledMm(4096, 512 * n), 16, 36) for n in range(4, 12))
    result = world(tmp_path, *rows).tune(budget_s=0.2)
    assert result.pack is not None
    assert 0 < len(result.pack.rows) < len(rows)
    assert any("were not measured in the time that there was" in note for note in result.notes)


def test_who_crashes_is_passed_over_and_a_row_that_nobody_serves_is_left_out_in_words(tmp_path: Path):
    it = world(tmp_path, ROW, replace(ROW, contract=RmsNorm(64), rivals=()))
    crashing = {untuned_config(GEMM, 16, target("sm_90"))} | set(ranked(GEMM, 16, SM_90)[:5]) - {BEST}
    is_norm = type(untuned_config(RmsNorm(64), 16, target("sm_90")))
    it.timer.problem = lambda provider, config, check: (
        "the process on the GPU crashed" if config in crashing or isinstance(config, is_norm) else None
    )
    result = it.tune()
    assert only(result.pack).best.config == plain(BEST)
    assert only(result.pack).untuned_us == 0
    assert any(
        f"{RmsNorm(64).key()} at M = 16 is not in the pack: helion: the process" in each for each in result.notes
    )


def test_a_rival_that_fails_is_named_with_its_reason(tmp_path: Path):
    it = world(tmp_path, ROW, replace(ROW, bucket=64))
    it.timer.problem = lambda provider, config, check: "y is off by 3%" if provider == "torch" else None
    assert it.tune().notes == (f"{GEMM.key()} at M = 16, 64 was not timed with torch: y is off by 3%",)


def test_the_fastest_is_struck_if_it_computes_something_else_and_the_next_one_serves(tmp_path: Path):
    it = world(tmp_path)
    wrong = [BEST, *neighbours(BEST, GEMM, 16, SM_90)]
    it.timer.problem = lambda provider, config, check: "y is off" if check and config in wrong else None
    row = only(it.tune().pack)
    assert row.best.config not in [plain(config) for config in wrong]
    assert row.best.provider == "helion"
    assert any(config == BEST and rounds == FULL.rounds for _, _, _, config, rounds in it.timer.trials)
    assert row.best.time_us < 1.3 * row.floor_us * 1.15


def test_who_would_compile_while_serving_never_wins_but_is_a_runner_up(tmp_path: Path):
    it = world(tmp_path, NORM)
    it.timer.time_us = lambda contract, size, provider, config: 1.0 if provider == "inductor" else 2.0
    row = only(it.tune().pack)
    assert row.best.provider != "inductor"
    assert row.runners_up[0].provider == "inductor"
    assert row.runners_up[0].time_us < row.best.time_us


def test_a_rival_that_is_faster_wins_without_binaries(tmp_path: Path):
    it = world(tmp_path)
    slow = it.timer.time_us
    it.timer.time_us = lambda contract, size, provider, config: (
        1.1 * it.timer.floor_us(contract, size) if provider == "torch" else slow(contract, size, provider, config)
    )
    pack = it.tune().pack
    assert only(pack).best.provider == "torch"
    assert pack is not None
    assert pack.binaries == ()


def test_what_spills_is_not_timed_unless_it_is_the_untuned_config(tmp_path: Path):
    it = world(tmp_path)
    untuned = untuned_config(GEMM, 16, target("sm_90"))
    it.compiler.spills = lambda request: 64 if request[2].split_k == 4 or request[2] == untuned else 0
    row = only(it.tune().pack)
    configs = {config for _, _, config in it.timer.configs()}
    assert untuned in configs
    assert all(config.split_k != 4 for config in configs - {untuned})
    assert row.best.config is not None
    assert row.best.config["split_k"] != 4


def test_a_seed_that_spills_is_timed_and_serves(tmp_path: Path):
    seed = world(tmp_path / "a").tune().pack
    assert seed is not None
    it = World(tmp_path / "b", (ROW,), planted(BEST), fingerprint=sample.H200)
    it.compiler.spills = lambda request: 64
    assert only(it.tune(seed_packs=(seed,)).pack).best.config == plain(BEST)
    without = World(tmp_path / "c", (ROW,), planted(BEST), fingerprint=sample.H200)
    without.compiler.spills = lambda request: 64
    assert only(without.tune().pack).best.config != plain(BEST)


@pytest.mark.parametrize("trials", [1, 3, 30, 47, 60])
def test_interrupted_and_resumed_it_is_the_same_pack_and_nothing_is_timed_twice(tmp_path: Path, trials: int):
    rows = (ROW, NORM, PlannedRow(GEMM, 64, 36, ("torch",)), PlannedRow(GEMM, 1, 36))
    whole = World(tmp_path / "whole", rows, planted(BEST))
    expected = whole.tune().pack
    first = World(tmp_path / "cut", rows, planted(BEST))
    first.timer.interrupt_after = trials
    result = first.tune()
    assert result.interrupted
    assert any("the same command goes on" in note for note in result.notes)
    if result.pack is not None:
        assert verify(read_pack(tmp_path / "cut" / "tuned"), None) == []
    second = World(tmp_path / "cut", rows, planted(BEST))
    assert_same(second.tune().pack, expected)
    assert sorted(map(repr, first.timer.trials + second.timer.trials)) == sorted(map(repr, whole.timer.trials))


def test_seeds_of_another_device_variant_take_a_third_of_the_trials(tmp_path: Path):
    rows = tuple(PlannedRow(contract, size, 36) for contract in (GEMM, ScaledMm(2048, 4096)) for size in (16, 64))
    without = World(tmp_path / "a", rows, planted(BEST))
    seed = without.tune().pack
    assert seed is not None
    variant = replace(BEST, num_stages=5)
    fresh = World(tmp_path / "b", rows, planted(variant), fingerprint=sample.H200)
    seeded = World(tmp_path / "c", rows, planted(variant), fingerprint=sample.H200)
    expected, found = fresh.tune().pack, seeded.tune(seed_packs=(seed,)).pack
    assert expected is not None
    assert found is not None
    assert [row.best.config for row in found.rows] == [row.best.config for row in expected.rows]
    assert 2 * len(seeded.timer.configs()) < len(fresh.timer.configs())
    assert 2 * len(seeded.compiler.requests) < len(fresh.compiler.requests)


def test_an_algorithm_that_no_seed_is_of_is_tried_as_well(tmp_path: Path):
    rows = (PlannedRow(WeightOnlyMv(4096, 4096), 1, 30),)

    def times(on_matrix_unit_us: float) -> Any:
        return lambda contract, size, provider, config: (
            on_matrix_unit_us if getattr(config, "on_matrix_unit", False) else 50.0
        )

    seed = World(tmp_path / "a", rows, times(90.0)).tune().pack
    assert not only(seed).best.config["on_matrix_unit"]
    tuned = World(tmp_path / "b", rows, times(40.0), fingerprint=sample.H200).tune(seed_packs=(seed,)).pack
    assert only(tuned).best.config["on_matrix_unit"]


def test_rows_that_are_only_called_instead_of_others_are_tuned_by_themselves(tmp_path: Path):
    instead = PlannedRow(WeightOnlyMv(4096, 4096), 1, 30, is_alternative=True)
    heavier = replace(instead, contract=WeightOnlyMv(4096, 12288))
    it = world(tmp_path, instead, heavier)
    pack = it.tune().pack
    assert pack is not None
    assert {row.contract for row in pack.rows} == {instead.contract.key(), heavier.contract.key()}
    searched = [contract for contract, _, _, _, rounds in it.timer.trials if rounds < FULL.rounds]
    assert searched[0] == heavier.contract.key()


def test_a_seed_that_stays_the_best_is_called_one(tmp_path: Path):
    seed = world(tmp_path).tune().pack
    assert seed is not None
    assert seed.rows[0].best.config != plain(untuned_config(GEMM, 16, target("sm_90")))
    row = only(World(tmp_path, (ROW,), planted(BEST), fingerprint=sample.H200).tune("h200", seed_packs=(seed,)).pack)
    assert row.chosen_by == "seed"


def test_steps_choose_among_the_three_fastest_and_a_programmatic_one_once(tmp_path: Path):
    jobs: list[StepJob] = []

    def step_tuner(job: StepJob) -> StepResult | str:
        jobs.append(job)
        [shortlist] = job.shortlists
        *fastest, last = shortlist.trials
        assert 2 <= len(fastest) <= 3
        assert not any(is_programmatic(trial.config) for trial in fastest)
        assert is_programmatic(last.config)
        assert last.config in twins(fastest[0].config, GEMM, 16, SM_90)
        assert all(trial.programs for trial in shortlist.trials if trial.provider == "helion")
        return StepResult({GEMM.key(): 1}, 2.0, 1.0, 4, 8)

    it = world(tmp_path)
    row = only(it.tune(step_tuner=step_tuner).pack)
    assert row.chosen_by == "step"
    assert row.best.config == plain(jobs[0].shortlists[0].trials[1].config)
    assert row.runners_up[0].time_us < row.best.time_us
    assert len(row.best.binaries) == 1
    again = only(world(tmp_path).tune(step_tuner=step_tuner).pack)
    assert again.best == row.best
    assert len(jobs) == 1


def test_a_step_that_fails_leaves_the_choices_and_a_note(tmp_path: Path):
    result = world(tmp_path).tune(step_tuner=lambda job: "out of memory")
    assert only(result.pack).chosen_by == "row"
    assert result.notes == ("the step of M = 16 was not tuned: out of memory",)


def test_rows_that_were_there_before_stay(tmp_path: Path):
    world(tmp_path, NORM).tune()
    pack = world(tmp_path, ROW).tune().pack
    assert pack is not None
    assert {row.op for row in pack.rows} == {"rms_norm", "scaled_mm"}
    assert verify(read_pack(tmp_path / "tuned"), None) == []


def test_another_devices_pack_is_not_replaced(tmp_path: Path):
    world(tmp_path).tune()
    other = World(tmp_path, (ROW,), planted(BEST), fingerprint=sample.H200)
    with pytest.raises(ConfigError, match=r"is a pack of NVIDIA H100.*this is NVIDIA H200.*name another --output"):
        other.tune()
    assert other.timer.trials == []


def test_it_says_how_far_it_is(tmp_path: Path):
    seen: list[tuple[str, int, float]] = []
    rows: list[RowState] = []

    def progress(now: Any) -> None:
        seen.append((now.stage, now.covered, now.seconds_left))
        rows.extend(now.costliest)

    world(tmp_path, ROW, NORM).tune(budget_s=100.0, progress=progress)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "first pass",
        "search",
        "refinement",
        "compiling providers",
    ]
    assert seen[-1][1] == 2
    assert seen[0][2] == 100.0 > seen[-1][2]
    assert {row.contract for row in rows} == {GEMM, NORM.contract}


def test_the_cost_of_a_launch_is_not_that_of_a_call_of_several(tmp_path: Path):
    # The norm has the least to do; if it were two programs, it would say nothing of one launch.
    for count, expected in ((1, LAUNCH_US), (2, LAUNCH_US)):
        it = world(tmp_path / str(count), ROW, NORM)
        it.compiler.count = lambda request, count=count: count if request[0].name == "rms_norm" else 1
        pack = it.tune(effort="quick").pack
        assert pack is not None
        assert pack.ledger.launch_us == expected
    it = world(tmp_path / "both", ROW)
    it.compiler.count = lambda request: 2
    pack = it.tune(effort="quick").pack
    assert pack is not None
    assert pack.ledger.launch_us == 0.0
