"""Blocks in one launch for several tokens: planned, measured and served beside the ways that take any rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parhelion.layers.alternatives import chosen_ways
from parhelion.layers.fusions import ON_GPU
from parhelion.ops.contract import Contract
from parhelion.ops.ways import OfAnyRows
from parhelion.tuning.model_calls import called_contracts, is_first_apart, layer_contracts, layer_ways, tuned_model
from parhelion.tuning.plan import make_plan, refuses
from tests.tuning.test_step_choices import Blocks, refused, served, tuned
from tests.tuning.tuner_fakes import SM_90

MODEL = tuned_model("qwen3-1.7b", "fp8_per_token")
FUSED, FEWER, SINGLE, WHOLE = range(4)
WAYS = layer_ways(MODEL, SM_90)
(BLOCK,) = WAYS[WHOLE]


def test_a_block_is_planned_for_as_many_tokens_as_there_are_programs_for():
    def sizes(model: str, processors: int) -> list[int]:
        plan = make_plan(tuned_model(model, "fp8_per_token"), replace(SM_90, num_processors=processors), refuses)
        return [row.bucket for row in plan.rows if row.contract.name == "decoder_block"]

    assert sizes("qwen3-1.7b", 132) == sizes("llama-3-8b", 132) == [1, 2, 4, 8, 16]
    # Of few outputs not every program would have some; and all of them wait for one another.
    assert sizes("qwen3-0.6b", 132) == sizes("qwen3-8b", 114) == [1]


def test_a_first_block_is_counted_in_the_first_way_where_the_others_are_one_launch():
    usual, whole = (layer_contracts(MODEL, SM_90, plan=ON_GPU[way]) for way in (FUSED, WHOLE))
    # One of each of the first block's, and the last norm.
    assert whole == Counter({BLOCK: MODEL.num_layers - 1, **dict.fromkeys(usual, 1)})
    assert [is_first_apart(MODEL, SM_90, plan) for plan in ON_GPU] == [False, False, False, True]
    # What is measured of it knows nothing of products of a single token, which have no rows for more.
    assert not any(each.name == "weight_only_mv" for each in called_contracts(MODEL, SM_90)[WHOLE])
    # Where the plan makes no one call of a block, all are computed in it.
    for name, scheme in (("qwen3-8b", "int8_per_token"), ("qwen2.5-7b", "fp8_per_token")):
        other = tuned_model(name, scheme)
        assert not is_first_apart(other, SM_90, ON_GPU[WHOLE])
        assert layer_contracts(other, SM_90, plan=ON_GPU[WHOLE]) == layer_contracts(other, SM_90, plan=ON_GPU[SINGLE])


def sums(whole: float, fused: float, fewer: float) -> Callable[[Contract, int, str, Any], float]:
    """Times of launches that add up to so much for a block of each of the ways."""
    shared = [each for each in WAYS[FUSED] if each in WAYS[FEWER]]
    times: dict[Contract, float] = {BLOCK: whole, **dict.fromkeys(shared, 1.0)}
    for way, total in ((FUSED, fused), (FEWER, fewer)):
        new = [each for each in WAYS[way] if each not in shared]
        left = total - sum(times[each] for each in WAYS[way] if each in shared)
        times |= dict.fromkeys(new, left / len(new))
    return lambda contract, num_tokens, provider, config: times.get(contract, 1.0)


def test_it_is_measured_beside_the_ways_for_any_rows_however_quick_it_is_and_serves_single_tokens(tmp_path: Path):
    blocks = Blocks({FUSED: 31.0, FEWER: 30.0, WHOLE: 17.0})
    rows = make_plan(MODEL, SM_90, refused, sizes=(2, 16)).rows
    result = tuned(tmp_path, blocks, sums(20.0, 33.0, 35.0), *rows, model=MODEL)
    # More than a quarter quicker, it leaves other steps to be measured all the same.
    assert {(job.num_tokens, job.way) for job in blocks.jobs} == {
        (m, w) for m in (2, 16) for w in (WHOLE, FUSED, FEWER)
    }
    assert result.pack is not None
    own = [each for each in result.pack.rows if each.op == "decoder_block"]
    assert [(row.num_tokens, row.best.provider, row.chosen_by) for row in own] == [
        (2, "gluon", "step"),
        (16, "gluon", "step"),
    ]
    assert all(row.best.binaries for row in own)
    # What other steps call is chosen in the way that they take, and no other.
    of_fewer = {each.key() for each in WAYS[FEWER]}
    assert {row.chosen_by for row in result.pack.rows if row.contract in of_fewer} == {"step"}
    measured = {(each.contracts, each.num_tokens): each.time_us for each in result.pack.blocks}
    assert measured[(BLOCK.key(),), 16] == 17.0
    assert len(measured) == 6

    resolver = served(tmp_path)
    assert chosen_ways(WAYS, resolver)[:6] == [WHOLE] * 5 + [FUSED]
    assert chosen_ways(WAYS, OfAnyRows(resolver))[:6] == [FEWER] * 5 + [FUSED]
    # Nobody has measured it beyond 16 tokens; and who asks for another provider leaves it to the other ways.
    assert resolver.time_us(BLOCK, 17) is None
    assert chosen_ways(WAYS, served(tmp_path, {"decoder_block": "reference"}))[:5] == [FEWER] * 5
