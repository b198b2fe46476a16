"""Steps on ranks and in pipelines, of a model whose kernels are made up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from parhelion.distributed.kernel_times import KernelTimes, StepRows
from parhelion.distributed.layouts import Layout
from parhelion.distributed.step_model import Cost, RankCalls, StepModel
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.embedding import Embedding
from parhelion.ops.linear import Linear
from parhelion.ops.registry import own_parts
from parhelion.packs.format import BlockTime
from tests.distributed.sample import FABRIC, H100, QWEN3_8B, row

MODEL = replace(QWEN3_8B, num_layers=8)
EMBEDDING, HEAD = Embedding(151936, 4096), Linear(4096, 151936)


def calls_of(tp: int) -> RankCalls:
    layer = Linear(4096, 4096 // tp)
    return RankCalls((Counter({layer: 8}),), ((layer,),), (EMBEDDING,), (HEAD,))


def model(rows: int = 0) -> StepModel:
    known = [row(HEAD, each, 500.0) for each in (1, 2, 4)] if rows else []
    return StepModel(MODEL, calls_of, KernelTimes(H100, known), FABRIC)


def test_one_gpu_takes_the_sum_of_its_kernels() -> None:
    steps = model()
    rows = StepRows((1,) * 4, (576,) * 4)
    alone = [steps.times.of(contract, rows).us for contract in (Linear(4096, 4096), EMBEDDING, HEAD)]
    found = steps.tpot(Layout(1), 4, 576)
    assert found.cost.total == pytest.approx(8 * alone[0] + alone[1] + alone[2])
    assert (found.cost.links, found.bubble) == (0.0, 0.0)


def test_costs_say_how_they_are_known() -> None:
    cost = model(rows=1).tpot(Layout(1), 4, 576).cost
    assert cost.measured == 500.0
    # The layers' product is of the head's op, and the embedding of none that was measured.
    assert cost.scaled > 0.0
    assert 0.0 < cost.floor < 10.0


def test_sharing_layers_adds_two_all_reduces_each_and_the_edges() -> None:
    cost = model().tpot(Layout(2), 4, 576).cost
    reduce_us = FABRIC.all_reduce_us(4 * 4096 * 2, 2)
    assert cost.links == pytest.approx(17 * reduce_us + FABRIC.all_gather_us(4 * 2 * 16, 2))


def test_sums_that_a_pack_measured_with_their_norms_take_what_it_says() -> None:
    shared = AllReduceRmsNorm(4096, 2)
    [norm] = own_parts([shared])
    calls = RankCalls((Counter({norm: 16}),), ((norm,),), (), (), (Counter({shared: 16}),))
    rows = [row(norm, 4, 2.0), msgspec.structs.replace(row(shared, 4, 5.0), floor_us=0.0)]

    def tpot(times: KernelTimes, batch: int) -> Cost:
        return StepModel(MODEL, lambda tp: calls, times, FABRIC).tpot(Layout(2), batch, 576).cost

    beside = FABRIC.all_reduce_us(4 * 4096 * 2, 2) + FABRIC.all_gather_us(4 * 2 * 16, 2)
    found = tpot(KernelTimes(H100, rows), 4)
    assert (found.links, found.kernels) == (pytest.approx(16 * 5.0 + beside), pytest.approx(0.0))
    for times, batch in ((KernelTimes(H100, rows), 8), (KernelTimes(H100, rows, same_device=False), 4)):
        modelled = 17 * FABRIC.all_reduce_us(batch * 4096 * 2, 2) + FABRIC.all_gather_us(batch * 2 * 16, 2)
        assert tpot(times, batch).links == pytest.approx(modelled)


def test_a_pipeline_does_not_shorten_a_single_request() -> None:
    steps = model()
    one, four = steps.tpot(Layout(1), 1, 576), steps.tpot(Layout(1, 4), 1, 576)
    assert four.cost.total > one.cost.total
    assert four.bubble == pytest.approx(0.75)


def test_a_full_pipeline_is_paced_by_its_slowest_stage() -> None:
    steps = model()
    found = steps.tpot(Layout(1, 4), 64, 576)
    slowest = steps.stages(Layout(1, 4), StepRows((1,) * 16, (576,) * 16), 16).slowest.total
    assert found.cost.total == pytest.approx(4 * slowest)
    assert 0.0 < found.bubble < 1.0


def test_more_prompts_fill_a_pipeline_better() -> None:
    steps = model()
    few, many = (steps.prefill(Layout(1, 4), batch, 512, 4096).bubble for batch in (1, 64))
    assert many < few


@pytest.mark.parametrize(("batch", "input_len"), [(1, 1), (3, 700), (1, 20000), (64, 512)])
def test_prompts_of_any_length_take_time_that_grows_with_them(batch: int, input_len: int) -> None:
    for layout in (Layout(1), Layout(2, 2)):
        less, more = (model().prefill(layout, batch, length, 4096).cost.total for length in (input_len, 3 * input_len))
        assert 0 < less < more


def test_other_fusions_count_only_where_they_were_measured() -> None:
    slow, quick = Linear(4096, 8192), Linear(4096, 1024)
    ways = (Counter({slow: 8}), Counter({quick: 8}))
    known = KernelTimes(H100, [row(each, 1, us) for each, us in ((slow, 100.0), (quick, 10.0))])
    steps = StepModel(MODEL, lambda tp: RankCalls(ways, ((slow,), (quick,)), (), ()), known, FABRIC)
    assert steps.tpot(Layout(1), 1, 576).cost.total == pytest.approx(80.0)
    assert steps.tpot(Layout(1), 2, 576).cost.total > 8 * 50.0


def test_whole_blocks_choose_the_fusions_and_kernels_say_what_they_take() -> None:
    slow, quick = Linear(4096, 8192), Linear(4096, 1024)
    ways = (Counter({slow: 8}), Counter({quick: 8}))
    rows = [row(each, 1, us) for each, us in ((slow, 100.0), (quick, 90.0))]
    blocks = [BlockTime((each.key(),), 1, us) for each, us in ((slow, 80.0), (quick, 85.0))]

    def tpot(times: KernelTimes) -> float:
        calls = RankCalls(ways, ((slow,), (quick,)), (), ())
        return StepModel(MODEL, lambda tp: calls, times, FABRIC).tpot(Layout(1), 1, 576).cost.total

    assert tpot(KernelTimes(H100, rows)) == pytest.approx(8 * 90.0)
    assert tpot(KernelTimes(H100, rows, blocks=blocks)) == pytest.approx(8 * 100.0)
    assert KernelTimes(H100, rows, same_device=False, blocks=blocks).block_us((slow,), 1) is None


def test_costs_add_up() -> None:
    cost = Cost(1.0, 2.0, 3.0, 4.0) + Cost(measured=1.0)
    assert (cost.total, cost.kernels, cost.times(2).measured) == (11.0, 7.0, 4.0)
