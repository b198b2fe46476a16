"""Steps on ranks and in pipelines, of a model whose kernels are made up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from parhelion.distributed.kernel_times import KernelTimes, StepRows
from parhelion.distributed.layouts import Layout
from parhelion.distributed.step_model import FIRST_TOKEN_US, Cost, RankCalls, StepModel
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.decoder_block import DecoderBlock
from parhelion.ops.embedding import Embedding
from parhelion.ops.fused_rope_attention import FusedRopeAttention
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


def test_a_block_in_one_launch_counts_for_rows_of_single_tokens_alone() -> None:
    slow, block = Linear(4096, 8192), DecoderBlock(4096, 12288, 32, 8, 128, 16, 40960, 128**-0.5, 1e-6, 1e-6)
    ways = (Counter({slow: 8}), Counter({block: 8}))
    rows = [row(each, 8, us) for each, us in ((slow, 100.0), (block, 60.0))]
    blocks = [BlockTime((each.key(),), 8, us) for each, us in ((slow, 100.0), (block, 60.0))]
    decodes, prompt = StepRows((1,) * 8, (576,) * 8), StepRows((8,), (8,))
    for known in (KernelTimes(H100, rows), KernelTimes(H100, rows, blocks=blocks)):
        steps = StepModel(MODEL, lambda tp: RankCalls(ways, ((slow,), (block,)), (), ()), known, FABRIC)
        assert steps.stages(Layout(1), decodes, 8).layers.total == pytest.approx(8 * 60.0, rel=0.05)
        assert steps.stages(Layout(1), prompt, 1).layers.total == pytest.approx(8 * 100.0)


def test_a_layer_takes_what_its_whole_block_was_measured_to_take() -> None:
    slow, quick = Linear(4096, 8192), Linear(4096, 1024)
    ways = (Counter({slow: 8}), Counter({quick: 8}))
    rows = [row(each, 1, us) for each, us in ((slow, 100.0), (quick, 90.0))]
    blocks = [BlockTime((each.key(),), 1, us) for each, us in ((slow, 80.0), (quick, 85.0))]

    def tpot(times: KernelTimes) -> float:
        calls = RankCalls(ways, ((slow,), (quick,)), (), ())
        return StepModel(MODEL, lambda tp: calls, times, FABRIC).tpot(Layout(1), 1, 576).cost.total

    assert tpot(KernelTimes(H100, rows)) == pytest.approx(8 * 90.0)
    assert tpot(KernelTimes(H100, rows, blocks=blocks)) == pytest.approx(8 * 80.0)
    assert KernelTimes(H100, rows, same_device=False, blocks=blocks).block_us((slow,), 1) is None


def test_attention_to_more_tokens_than_a_block_was_measured_with_takes_longer_by_itself_alone() -> None:
    attention, linear = FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6), Linear(4096, 4096)
    rows = [row(attention, 256, 150.0), row(linear, 256, 20.0)]
    block = BlockTime((attention.key(), linear.key()), 256, 160.0)
    calls = RankCalls((Counter({attention: 8, linear: 8}),), ((attention, linear),), (), ())

    def tpot(context: int, blocks: tuple[BlockTime, ...]) -> float:
        times = KernelTimes(H100, rows, blocks=blocks)
        return StepModel(MODEL, lambda tp: calls, times, FABRIC).tpot(Layout(1), 256, context).cost.total

    assert tpot(576, (block,)) == pytest.approx(8 * 160.0, rel=0.01)
    for context in (576, 8192):
        assert tpot(context, ()) - tpot(context, (block,)) == pytest.approx(8 * 10.0)


def test_fusions_that_leave_a_sum_by_itself_are_not_taken_for_what_a_rank_does_alone() -> None:
    """Products that normalize leave the sum before them to NCCL: what they gain is less than that takes."""
    shared, alone = AllReduceRmsNorm(4096, 2), AllReduce(4096, 2)
    [norm] = own_parts([shared])
    linear, normalizing = Linear(4096, 4096), Linear(4096, 4097)
    calls = RankCalls(
        ways=(Counter({norm: 8, linear: 8}), Counter({normalizing: 8})),
        blocks=((shared, linear), (alone, normalizing)),
        before=(),
        behind=(),
        shared=(Counter({shared: 8}), Counter({alone: 8})),
    )
    rows = [row(norm, 1, 2.0), row(linear, 1, 10.0), row(normalizing, 1, 11.0)]
    together = msgspec.structs.replace(row(shared, 1, 4.0), floor_us=0.0)
    beside = FABRIC.all_reduce_us(4096 * 2, 2)
    for known, sums in (([], 17 * beside + 8 * 2.0), ([together], 8 * 4.0 + 9 * beside)):
        found = StepModel(MODEL, lambda tp: calls, KernelTimes(H100, [*rows, *known]), FABRIC).tpot(Layout(2), 1, 576)
        assert found.cost.total == pytest.approx(8 * 10.0 + sums + FABRIC.all_gather_us(2 * 16, 2))


def test_first_tokens_take_the_host_a_time_of_its_own_once() -> None:
    steps = model()
    for batch in (1, 64):
        found = steps.prefill(Layout(1), batch, 512, 4096).cost
        assert found.host == FIRST_TOKEN_US
        assert found.total == pytest.approx(found.kernels + FIRST_TOKEN_US)
    assert steps.tpot(Layout(1), 1, 576).cost.host == 0.0


def test_costs_add_up() -> None:
    cost = Cost(1.0, 2.0, 3.0, 4.0) + Cost(measured=1.0)
    assert (cost.total, cost.kernels, cost.times(2).measured) == (11.0, 7.0, 4.0)
