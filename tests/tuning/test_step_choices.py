"""Ways to compute a block: which are tuned, who serves then, and that a server takes the one that was quickest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from parhelion.layers.alternatives import chosen_ways
from parhelion.ops.contract import Contract
from parhelion.ops.launching import BUCKETS
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.resolve import Resolver
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import Pack
from parhelion.packs.match import Chosen, match
from parhelion.packs.store import read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.head_calls import tuned_head
from parhelion.tuning.jobs import Request
from parhelion.tuning.model_calls import head_ways, layer_ways, tuned_model
from parhelion.tuning.plan import Plan, PlannedRow, make_plan
from parhelion.tuning.programs import plain
from parhelion.tuning.step_choices import STEP_S
from parhelion.tuning.step_tuning import StepJob, StepResult
from parhelion.tuning.target import target
from parhelion.tuning.timed_config import Timed
from parhelion.tuning.tune import TuneResult, journal_of
from tests.models.eagle3_heads import ORIGINAL_JSON, write_head
from tests.packs import sample
from tests.tuning.tuner_fakes import SM_90, FakeCompiler, World

MODEL = tuned_model("qwen3-0.6b", "fp8_per_token")
CPU = torch.device("cpu")
FUSED, FEWER, SINGLE = range(3)
WAYS = layer_ways(MODEL, SM_90)[:3]
WHOLE = 3
"""The way of one launch a block, where its row is tuned as well."""

NUM_LAYERS = 4


def refused(provider: object, contract: Contract) -> str | None:
    """Tile programs have no rivals."""
    return "not here"


def rows_of(*ops: str, sizes: tuple[int, ...] = (1,), whole: bool = False) -> tuple[PlannedRow, ...]:
    """But for the block as a whole, unless that is asked for."""
    rows = make_plan(MODEL, SM_90, refused, ops=ops, sizes=sizes).rows
    return rows if whole else in_parts(rows)


def in_parts(rows: tuple[PlannedRow, ...]) -> tuple[PlannedRow, ...]:
    return tuple(row for row in rows if row.contract.name != "decoder_block")


def sums(fused: float, fewer: float, single: float) -> Callable[[Contract, int, str, Any], float]:
    """Times of launches that add up to so much for a block of each of the ways, whatever the config."""
    shared = [contract for contract in WAYS[FUSED] if all(contract in way for way in WAYS)]
    known: dict[Contract, float] = dict.fromkeys(shared, 1.0)
    # Two ways share more than all three do: one after the other, and what is new of each takes what is left.
    for way, total in ((FUSED, fused), (FEWER, fewer), (SINGLE, single)):
        new = [contract for contract in WAYS[way] if contract not in known]
        left = total - sum(known.get(contract, 0.0) for contract in WAYS[way])
        known |= dict.fromkeys(new, left / len(new))
    return lambda contract, num_tokens, provider, config: known.get(contract, 1.0)


@dataclass
class Blocks:
    """A step tuner to which a block takes what it is told. Each way chooses by its own number from the shortlists."""

    block_us: dict[int, float]
    fails: dict[int, str] = field(default_factory=dict)
    jobs: list[StepJob] = field(default_factory=list)

    def __call__(self, job: StepJob) -> StepResult | str:
        self.jobs.append(job)
        if job.way in self.fails:
            return self.fails[job.way]
        way = layer_ways(job.model, SM_90)[job.way]
        called = [each for each in job.shortlists if each.contract in way]
        choices = {each.contract.key(): min(job.way, len(each.trials) - 1) for each in called}
        after_us = NUM_LAYERS * self.block_us[job.way]
        return StepResult(choices, after_us + 1.0, after_us, NUM_LAYERS, 8)

    @property
    def ways(self) -> list[int]:
        return [job.way for job in self.jobs]


def tuned(
    folder: Path, blocks: Blocks, time_us: Callable[[Contract, int, str, Any], float], *rows: PlannedRow, **world: Any
) -> TuneResult:
    return World(folder, rows or rows_of(), time_us, **world).tune(step_tuner=blocks, effort="quick")


def served(folder: Path, overrides: dict[str, str] | None = None) -> Resolver:
    """As a server opens the pack that the tuner wrote."""
    stored = read_pack(folder / "tuned")
    chosen = Chosen(stored, match(stored.pack.fingerprint, sample.H100))
    return Resolver(CPU, overrides, pack=PackKernels(chosen, CPU, source_hashes(), 132))


def block_times(pack: Pack | None) -> dict[int, float]:
    """By way; at one M."""
    assert pack is not None
    keys = [tuple(contract.key() for contract in way) for way in WAYS]
    return {keys.index(each.contracts): each.time_us for each in pack.blocks}


def tuned_alone(folder: Path) -> Pack:
    """The model by itself, its blocks measured."""
    steps = Blocks({FUSED: 30.2, FEWER: 33.0, SINGLE: 30.4})
    pack = World(folder, rows_of(), sums(37.0, 35.0, 31.4)).tune(step_tuner=steps, effort="quick").pack
    assert pack is not None
    return pack


def tuned_behind(alone: Pack, folder: Path, plan: Plan, blocks: Blocks) -> TuneResult:
    """A plan into the same folder. What serves would be the slowest of all if it were asked for again."""
    serving = [row.best.config for row in alone.rows]
    again = World(
        folder,
        plan.rows,
        lambda contract, size, provider, config: 9.0 if plain(config) in serving else 2.0,
        model=plan.model,
    )
    return again.tune(step_tuner=blocks, effort="quick")


def test_the_way_whose_block_was_quicker_serves_although_its_sum_is_larger(tmp_path: Path):
    blocks = Blocks({FUSED: 30.2, FEWER: 33.0, SINGLE: 30.4})
    result = tuned(tmp_path, blocks, sums(37.0, 35.0, 31.4))
    assert blocks.ways == [SINGLE, FEWER, FUSED]
    assert block_times(result.pack) == pytest.approx({FUSED: 30.2, FEWER: 33.0, SINGLE: 30.4})
    assert verify(read_pack(tmp_path / "tuned")) == []
    assert chosen_ways(WAYS, served(tmp_path))[0] == FUSED
    # Who is served by someone else makes their times unknown. Then the sums decide, of what two ways do not share: for
    # a single token attention is another contract, of which nothing is known.
    assert chosen_ways(WAYS, served(tmp_path, {"fused_rope_attention": "reference"}))[0] == FEWER


def test_rows_that_fewer_ranks_share_stay_as_they_are_and_so_do_the_times_of_their_blocks(tmp_path: Path):
    alone = tuned_alone(tmp_path)
    model = tuned_model("qwen3-0.6b", "fp8_per_token", 2)
    plan = make_plan(model, SM_90, refused, sizes=(1,))
    ways = layer_ways(model, SM_90)
    blocks = Blocks({FUSED: 17.0, FEWER: 19.0, SINGLE: 18.0})
    shared = tuned_behind(alone, tmp_path, plan, blocks)
    assert shared.pack is not None
    own = {row.contract.key() for row in plan.rows}
    before = {row.contract: row for row in alone.rows}
    assert own & set(before)
    for row in shared.pack.rows:
        assert row == before.get(row.contract, row)
    assert {row.contract for row in shared.pack.rows} == own | set(before)
    assert {(each.title, each.tp) for each in shared.pack.models} == {
        ("qwen3-0.6b fp8_per_token", 1),
        ("qwen3-0.6b fp8_per_token tp 2", 2),
    }
    old, new = ({tuple(contract.key() for contract in way) for way in each} for each in (WAYS, ways))
    found = {each.contracts for each in shared.pack.blocks}
    assert old < found <= old | new
    assert all({each.contract for each in job.shortlists} == {row.contract for row in plan.rows} for job in blocks.jobs)
    assert any(note.endswith("rows stay as the pack has them of fewer ranks") for note in shared.notes)
    assert verify(read_pack(tmp_path / "tuned")) == []
    assert chosen_ways(WAYS, served(tmp_path))[0] == FUSED
    # One rank again: its rows are its own to choose.
    again = World(tmp_path, rows_of(), sums(37.0, 35.0, 31.4)).tune(effort="quick", step_tuner=blocks)
    assert again.notes == ()


def test_a_quantized_head_is_added_to_what_a_pack_has_of_the_model(tmp_path: Path):
    alone = tuned_alone(tmp_path)
    model = tuned_model("qwen3-0.6b", "fp8_per_token", lm_head_quantization="fp8")
    plan = make_plan(model, SM_90, refused, sizes=(1,))
    plan = replace(plan, rows=in_parts(plan.rows))
    blocks = Blocks({})
    both = tuned_behind(alone, tmp_path, plan, blocks)
    assert both.pack is not None
    assert blocks.jobs == []
    assert (both.pack.blocks, len(alone.blocks)) == (alone.blocks, 3)
    assert [each.title for each in both.pack.models] == [
        "qwen3-0.6b fp8_per_token",
        "qwen3-0.6b fp8_per_token lm_head fp8",
    ]
    rows, before = ({row.contract: row for row in pack.rows} for pack in (both.pack, alone))
    assert all(rows[contract] == row for contract, row in before.items())
    new = {contract_of_key(key) for key in rows.keys() - before.keys()}
    assert {each for way in head_ways(model, SM_90) for each in way} == new
    assert any(note.endswith("fewer ranks, or of a head that is not quantized") for note in both.notes)
    assert verify(read_pack(tmp_path / "tuned")) == []


def test_a_draft_heads_rows_are_added_and_what_its_target_calls_stays(tmp_path: Path):
    alone = tuned_alone(tmp_path)
    config = {"hidden_size": 1024, "vocab_size": 151936, "target_hidden_size": 1024, "rms_norm_eps": 1e-6}
    head = tuned_head(str(write_head(tmp_path / "mine", ORIGINAL_JSON | config)))
    plan = make_plan(head, SM_90, refused, sizes=(1,))
    blocks = Blocks({})
    both = tuned_behind(alone, tmp_path, plan, blocks)
    assert both.pack is not None
    assert blocks.jobs == []
    assert (both.pack.blocks, len(alone.blocks)) == (alone.blocks, 3)
    assert [each.title for each in both.pack.models] == ["qwen3-0.6b fp8_per_token", "mine unquantized"]
    rows, before = ({row.contract: row for row in pack.rows} for pack in (both.pack, alone))
    assert all(rows[contract] == row for contract, row in before.items())
    assert {row.contract.key() for row in plan.rows} == set(both.pack.models[1].contracts) <= set(rows)
    shared = {contract_of_key(key).name for key in both.pack.models[1].contracts if key in before}
    assert shared == {"embedding", "fused_add_rms_norm"}
    assert any(note == "2 rows stay as the pack has them of fewer ranks, or of other models" for note in both.notes)
    assert verify(read_pack(tmp_path / "tuned")) == []
    # Asked again, its own rows are its own to choose.
    once_more = World(tmp_path, plan.rows, lambda *_: 5.0, model=head).tune(name="tuned", effort="quick")
    assert [note for note in once_more.notes if "stay" in note] == [
        "2 rows stay as the pack has them of fewer ranks, or of other models"
    ]


def test_without_times_of_blocks_the_sums_decide(tmp_path: Path):
    pack = World(tmp_path, rows_of(), sums(37.0, 35.0, 31.4)).tune(effort="quick").pack
    assert block_times(pack) == {}
    assert chosen_ways(WAYS, served(tmp_path))[0] == SINGLE


@pytest.mark.parametrize("quickest", [FUSED, FEWER, SINGLE])
def test_rows_are_served_as_chosen_for_the_quickest_way_and_those_of_others_by_their_fastest(
    tmp_path: Path, quickest: int
):
    blocks = Blocks({way: 30.0 + (way != quickest) for way in range(3)})
    pack = tuned(tmp_path, blocks, sums(32.0, 32.0, 32.0)).pack
    assert pack is not None
    lists = {each.contract.key(): each.trials for each in blocks.jobs[0].shortlists}
    called = {contract.key() for contract in WAYS[quickest]}
    for row in pack.rows:
        trials = lists[row.contract]
        if row.contract in called:
            assert row.chosen_by == "step"
            assert row.best.config == plain(trials[min(quickest, len(trials) - 1)].config)
        else:
            assert row.chosen_by != "step"
            assert row.best.config == plain(trials[0].config)


def test_a_way_far_from_the_least_sum_is_not_tuned_and_its_sum_still_counts(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0})
    result = tuned(tmp_path, blocks, sums(30.0, 31.0, 40.0))
    assert blocks.ways == [FUSED, FEWER]
    assert set(block_times(result.pack)) == {FUSED, FEWER}
    assert chosen_ways(WAYS, served(tmp_path))[0] == FUSED


def test_the_budget_of_a_size_is_divided_among_its_ways(tmp_path: Path):
    blocks = Blocks(dict.fromkeys(range(3), 30.0))
    tuned(tmp_path, blocks, sums(32.0, 32.0, 32.0))
    # The fake takes no time, so what the first leaves is there for the others.
    assert [job.budget_s for job in blocks.jobs] == pytest.approx([STEP_S / 3, STEP_S / 2, STEP_S])


def test_of_some_ops_alone_no_block_is_whole(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0})
    result = tuned(tmp_path, blocks, sums(32.0, 32.0, 32.0), *rows_of("scaled_mm"))
    assert blocks.ways == [FUSED]
    assert block_times(result.pack) == {}
    assert result.pack is not None
    assert {row.chosen_by for row in result.pack.rows} == {"step"}


def test_a_way_whose_first_block_is_not_known_is_not_tuned(tmp_path: Path):
    first_norms = {row.contract for row in rows_of("weight_only_mv")} - set(WAYS[SINGLE])
    assert len(first_norms) == 1
    rows = tuple(row for row in rows_of() if row.contract not in first_norms)
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0})
    tuned(tmp_path, blocks, sums(32.0, 32.0, 32.0), *rows)
    assert SINGLE not in blocks.ways


def test_a_step_that_fails_leaves_its_way_to_its_sum(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0, FEWER: 29.0}, fails={SINGLE: "out of memory"})
    result = tuned(tmp_path, blocks, sums(33.0, 33.0, 32.0))
    assert "the step of M = 1 was not tuned: out of memory" in result.notes
    assert set(block_times(result.pack)) == {FUSED, FEWER}
    assert chosen_ways(WAYS, served(tmp_path))[0] == SINGLE


def test_a_second_tune_repeats_no_step_and_one_without_a_time_is_measured_again(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0})
    times = sums(32.0, 32.0, 32.0)
    first = tuned(tmp_path, blocks, times).pack
    again = Blocks({})
    assert block_times(tuned(tmp_path, again, times).pack) == block_times(first)
    assert again.jobs == []
    journal = journal_of(tmp_path / "tuned")
    lines = [msgspec.json.decode(line) for line in journal.read_bytes().splitlines()]
    old = [{k: v for k, v in line.items() if k != "block_us"} for line in lines]
    journal.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in old))
    slower = Blocks({FUSED: 27.0, FEWER: 31.0, SINGLE: 29.0})
    assert block_times(tuned(tmp_path, slower, times).pack)[FUSED] == pytest.approx(27.0)
    assert sorted(slower.ways) == [FUSED, FEWER, SINGLE]


def test_an_interruption_between_two_ways_decides_nothing_and_goes_on_from_there(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0})

    def interrupted(job: StepJob) -> StepResult | str:
        if blocks.jobs:
            raise KeyboardInterrupt
        return blocks(job)

    times = sums(32.0, 32.0, 32.0)
    result = World(tmp_path, rows_of(), times).tune(step_tuner=interrupted, effort="quick")
    assert result.interrupted
    assert block_times(result.pack) == {}
    assert result.pack is not None
    assert "step" not in {row.chosen_by for row in result.pack.rows}
    assert len(blocks.ways) == 1
    assert set(block_times(tuned(tmp_path, blocks, times).pack)) == {FUSED, FEWER, SINGLE}
    assert sorted(blocks.ways) == [FUSED, FEWER, SINGLE]


def test_a_block_with_a_config_that_cannot_be_built_to_serve_is_left_out(tmp_path: Path):
    """Of attention fewer programs are timed than serve, and here those that serve can be built of one config alone."""
    [row] = (each for each in rows_of("fused_rope_attention") if each.contract in WAYS[SINGLE])
    untuned = untuned_config(row.contract, 1, target("sm_90"))
    usual = sums(32.0, 32.0, 32.0)

    def time_us(contract: Contract, num_tokens: int, provider: str, config: Any) -> float:
        return usual(contract, num_tokens, provider, config) * (0.9 if config == untuned else 1.0)

    def fails(request: Request) -> str | None:
        contract, _, config = request
        is_whole = contract == row.contract and not isinstance(config, Timed)
        return "no" if is_whole and config != untuned else None

    # The way that calls it takes another config than the untuned one.
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0})
    pack = tuned(tmp_path, blocks, time_us, compiler=FakeCompiler(fails)).pack
    assert set(blocks.ways) == {FUSED, FEWER, SINGLE}
    assert set(block_times(pack)) == {FUSED, FEWER}
    assert pack is not None
    [served_by] = [each for each in pack.rows if each.contract == row.contract.key()]
    assert served_by.best.config == plain(untuned)


def test_rows_that_blocks_were_measured_with_stay_where_none_is_measured_with_what_is_found(tmp_path: Path):
    blocks = Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0})
    times = sums(32.0, 32.0, 32.0)
    before = tuned(tmp_path, blocks, times).pack
    # Of a part of the rows no block is whole.
    left = tuned(tmp_path, blocks, sums(16.0, 16.0, 16.0), *rows_of("silu_and_mul_dynamic_per_token_quant")).pack
    assert before is not None
    assert left is not None
    assert (left.rows, left.blocks) == (before.rows, before.blocks)
    # At a size of which no block was measured they are new.
    both = tuned(tmp_path, blocks, times, *rows_of("fused_rope_attention", sizes=(2,))).pack
    assert both is not None
    assert both.blocks == before.blocks
    assert [row.num_tokens for row in both.rows if row not in before.rows] == [2] * (len(both.rows) - len(before.rows))
    assert len(both.rows) > len(before.rows)


def test_steps_of_some_ops_are_measured_with_what_the_pack_has_of_the_others(tmp_path: Path):
    times = sums(32.0, 32.0, 32.0)
    before = tuned(tmp_path, Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0}), times).pack
    assert before is not None
    name = "silu_and_mul_dynamic_per_token_quant"
    plan = make_plan(MODEL, SM_90, refused, ops=(name,), sizes=(1,))
    again = Blocks({FUSED: 27.0, FEWER: 31.5, SINGLE: 29.5})
    result = World(tmp_path, plan.rows, times, others=plan.others).tune(step_tuner=again, effort="quick")
    assert block_times(result.pack) == pytest.approx(again.block_us)
    assert result.pack is not None
    kept = [row for row in before.rows if row.op != name]
    assert kept == [row for row in result.pack.rows if row.op != name]
    assert {row.contract.name for row in result.rows} == {name}
    assert any(f"{len(kept)} rows of other ops stay" in note for note in result.notes)
    # The model calls what it called.
    assert [set(entry.contracts) for entry in result.pack.models] == [set(entry.contracts) for entry in before.models]


def test_ops_outside_of_blocks_leave_the_times_of_blocks_alone(tmp_path: Path):
    times = sums(32.0, 32.0, 32.0)
    tuned(tmp_path, Blocks({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0}), times)
    plan = make_plan(MODEL, SM_90, refused, ops=("argmax",), sizes=(1,))
    again = Blocks({FUSED: 27.0, FEWER: 27.0, SINGLE: 27.0})
    result = World(tmp_path, plan.rows, times, others=plan.others).tune(step_tuner=again, effort="quick")
    assert again.jobs == []
    assert block_times(result.pack) == pytest.approx({FUSED: 30.0, FEWER: 31.0, SINGLE: 29.0})


def test_sizes_between_two_that_were_tuned_are_decided_as_the_larger(tmp_path: Path):
    blocks = Blocks({FUSED: 32.0, FEWER: 30.0})
    tuned(tmp_path, blocks, sums(31.0, 37.0, 99.0), *rows_of(sizes=(4, 16)))
    assert chosen_ways(WAYS, served(tmp_path)) == [FEWER if bucket <= 16 else FUSED for bucket in BUCKETS]
    kernels = served(tmp_path)
    assert [kernels.block_us(WAYS[FEWER], m) for m in (1, 3, 4, 5, 16)] == pytest.approx([30.0] * 5)
    assert kernels.block_us(WAYS[FEWER], 17) is None
    assert kernels.block_us(WAYS[SINGLE], 4) is None


def test_ways_that_call_the_same_are_tuned_once(tmp_path: Path):
    unquantized = tuned_model("qwen3-0.6b")
    blocks = Blocks({FUSED: 30.0})
    rows = make_plan(unquantized, SM_90, refused, sizes=(1,)).rows
    pack = tuned(tmp_path, blocks, lambda *asked: 1.0, *rows, model=unquantized).pack
    assert blocks.ways == [FUSED]
    assert pack is not None
    assert [each.contracts for each in pack.blocks] == [tuple(each.key() for each in layer_ways(unquantized, SM_90)[0])]


def test_a_block_in_one_launch_is_measured_beside_the_others_and_serves_one_token_alone(tmp_path: Path):
    (whole,) = layer_ways(MODEL, SM_90)[WHOLE]
    blocks = Blocks({FUSED: 31.0, FEWER: 33.0, SINGLE: 30.0, WHOLE: 24.0})
    others = sums(38.0, 37.0, 33.0)

    def time_us(contract: Contract, num_tokens: int, provider: str, config: Any) -> float:
        return 27.0 if contract == whole else others(contract, num_tokens, provider, config)

    result = tuned(tmp_path, blocks, time_us, *rows_of(sizes=(1, 2), whole=True))
    assert blocks.ways[:1] == [WHOLE]
    assert {job.way for job in blocks.jobs if job.num_tokens == 2} <= {FUSED, FEWER}
    assert result.pack is not None
    (row,) = [each for each in result.pack.rows if each.op == "decoder_block"]
    assert (row.num_tokens, row.best.provider) == (1, "gluon")
    assert row.best.binaries
    assert [each.time_us for each in result.pack.blocks if each.contracts == (whole.key(),)] == [24.0]
    ways = layer_ways(MODEL, SM_90)
    assert chosen_ways(ways, served(tmp_path))[0] == WHOLE
    assert WHOLE not in chosen_ways(ways, served(tmp_path))[1:]
    # Who asks for another provider of the block leaves it to the other ways.
    assert chosen_ways(ways, served(tmp_path, {"decoder_block": "reference"}))[0] == SINGLE


def test_a_pack_without_the_row_of_a_block_knows_no_such_way(tmp_path: Path):
    tuned(tmp_path, Blocks({FUSED: 31.0, FEWER: 33.0, SINGLE: 30.0}), sums(35.0, 34.0, 33.0))
    assert chosen_ways(layer_ways(MODEL, SM_90), served(tmp_path))[0] == SINGLE
