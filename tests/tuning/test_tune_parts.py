"""The tuner's parts by themselves: plans, the static model, neighbours, seeds, stop rules, halving, compiling ahead."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.decode_attention.config import DecodeAttentionConfig
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import RopeAttentionConfig
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import BUCKETS
from parhelion.ops.linear import Linear
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_blockwise import ScaledMmBlockwise
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.platform.measure import summarize
from parhelion.quantization import RequestedQuantization
from parhelion.tuning.compile_ahead import CompileAhead
from parhelion.tuning.estimate import COMPILE_S, estimate
from parhelion.tuning.jobs import Outcome, Request, no_more
from parhelion.tuning.model_calls import NUM_LAYERS, head_ways, layer_contracts, tuned_model
from parhelion.tuning.model_contracts import contracts_of
from parhelion.tuning.model_shapes import MODEL_SHAPES
from parhelion.tuning.neighbours import neighbours
from parhelion.tuning.passes import EFFORTS, FIRST_OF_OTHERS
from parhelion.tuning.plan import COMPILING_SIZES, MOST_SAMPLED, PlannedRow, grouped, make_plan, refuses
from parhelion.tuning.programs import Program
from parhelion.tuning.prune import algorithm, gemm_of, kept, predicted_us, ranked, spread, why_dropped
from parhelion.tuning.row_state import RowState, step_us
from parhelion.tuning.search import FIRST, FULL, SECOND, search
from parhelion.tuning.seeds import SeedBank, Winner, distance, fitted, nearest
from parhelion.tuning.stopping import has_gained, is_done, is_near_floor, share_to_gain
from parhelion.tuning.target import target
from parhelion.tuning.tune import _built_to_serve
from tests.packs import sample
from tests.tuning.tuner_fakes import SM_90, FakeCompiler, program

GEMM = ScaledMm(4096, 6144)


def test_every_listed_model_has_its_layers():
    assert set(NUM_LAYERS) == {shape.name for shape in MODEL_SHAPES}


def test_a_plan_has_what_the_fused_step_calls_as_often_as_it_does():
    model = tuned_model("qwen3-8b", "fp8_per_token")
    plan = make_plan(model, SM_90, refuses)
    weights = {row.contract.key(): row.weight for row in plan.rows}
    by_op: dict[str, int] = {}
    for key, weight in weights.items():
        by_op[key.partition("(")[0]] = by_op.get(key.partition("(")[0], 0) + weight
    assert by_op["scaled_mm"] == 4 * 36
    assert by_op["rms_norm_dynamic_per_token_quant"] == 2 * 36
    assert by_op["silu_and_mul_dynamic_per_token_quant"] == 36
    # With an output that is quantized or, for a single token, not.
    assert by_op["fused_rope_attention"] == 2 * 36
    assert "dynamic_per_token_scaled_fp8_quant" not in by_op
    assert by_op["fused_add_rms_norm"] == by_op["linear"] == by_op["embedding"] == by_op["argmax"] == 1
    assert by_op["step_inputs"] == 1
    assert "rms_norm" not in by_op
    called = {contract.key() for contract in contracts_of(model.shape, model.quantization)}
    assert set(weights) - called == {key for key in weights if key.startswith(("argmax", "step_inputs", "top_k"))}


FEW = {1, 2, 4, 8, 16, 32, 64}
OPS_INSTEAD = {
    "scaled_mm_silu_and_mul": FEW,
    "scaled_mm_of_activations": FEW,
    "weight_only_mv": {1},
    "decoder_block": {1, 2, 4, 8, 16},
    "fused_rope_attention": {1},  # whose output is not quantized
}


def test_what_a_step_may_call_instead_is_planned_for_few_tokens_and_is_no_part_of_the_step():
    plan = make_plan(tuned_model("qwen3-8b", "fp8_per_token"), SM_90, refuses)
    instead = [row for row in plan.rows if row.is_alternative]
    names = {row.contract.name for row in instead}
    assert {name: {row.bucket for row in instead if row.contract.name == name} for name in names} == OPS_INSTEAD
    # The first block's qkv has no residual to add, and out and down differ in K.
    assert len([row for row in instead if row.contract.name == "weight_only_mv"]) == 5
    # That block is no single launch either; elsewhere than on a Hopper none is.
    whole = [row for row in instead if row.contract.name == "decoder_block"]
    assert {(row.contract, row.weight, row.rivals) for row in whole} == {(whole[0].contract, 35, ())}
    elsewhere = make_plan(tuned_model("qwen3-8b", "fp8_per_token"), gemm_target("sm_100"), refuses)
    assert {row.contract.name for row in elsewhere.rows if row.is_alternative} == {*names} - {"decoder_block"}
    states = [RowState(row, 1.0, None) for row in plan.rows]
    usual = [state for state in states if not state.planned.is_alternative]
    assert step_us(states) == step_us(usual)


def test_a_plan_has_all_buckets_but_the_head_no_more_than_there_are_requests():
    plan = make_plan(tuned_model("qwen3-0.6b"), SM_90, refuses)
    sizes = {
        row.contract.name: [each.bucket for each in plan.rows if each.contract == row.contract] for row in plan.rows
    }
    assert sizes["fused_rope_attention"] == list(BUCKETS)
    assert sizes["argmax"] == sizes["step_inputs"] == [bucket for bucket in BUCKETS if bucket <= MOST_SAMPLED]
    some = make_plan(tuned_model("qwen3-0.6b"), SM_90, refuses, ops=("rms_norm",), sizes=(1, 5, 8, 10**6))
    assert [(row.contract.name, row.bucket) for row in some.rows] == [("rms_norm", size) for size in (1, 8, 8192)]


@pytest.mark.parametrize("head", ["fp8", "int8"])
def test_a_quantized_head_has_rows_for_both_ways_to_multiply(head: RequestedQuantization):
    usual = make_plan(tuned_model("qwen3-1.7b", "fp8_per_token"), SM_90, refuses)
    model = tuned_model("qwen3-1.7b", "fp8_per_token", lm_head_quantization=head)
    plan = make_plan(model, SM_90, refuses)
    assert len({(row.contract, row.bucket) for row in plan.rows}) == len(plan.rows)
    few = [bucket for bucket in BUCKETS if bucket <= MOST_SAMPLED]
    new = {row.contract for row in plan.rows} - {row.contract for row in usual.rows}
    rows = {each: [row for row in plan.rows if row.contract == each] for each in new}
    product, alone = (each(2048, 151936, model.head_quantization.weight_dtype) for each in (ScaledMm, WeightOnlyMv))
    assert [row.bucket for row in rows.pop(product)] == few
    assert [(row.bucket, row.is_alternative) for row in rows.pop(alone)] == [(1, True)]
    # In layers norms and attention quantize what they make: nobody quantizes rows by itself.
    (quantize,) = [each for each in head_ways(model, SM_90)[0] if each != product]
    assert list(rows) == [quantize]
    assert {row.weight for row in plan.rows if row.contract == quantize} == {1}
    plain = Linear(2048, 151936)
    assert plain in {row.contract for row in usual.rows}
    assert plain not in {row.contract for row in plan.rows}


def test_a_head_of_fp8_is_not_quantized_further_where_there_are_no_8_bit_floats():
    sm_80 = gemm_target("sm_80")
    fp8, int8 = (make_plan(tuned_model("qwen3-8b", None, 1, head), sm_80, refuses).rows for head in ("fp8", "int8"))
    assert {row.contract for row in fp8 if "_mm" in row.contract.name} == {WeightOnlyMm(4096, 151936)}
    assert {row.contract for row in int8 if "_mm" in row.contract.name} == {ScaledMm(4096, 151936, torch.int8)}


def test_those_who_compile_at_their_first_call_are_measured_at_a_few_sizes_and_are_no_rivals():
    plan = make_plan(tuned_model("qwen3-0.6b"), SM_90, refuses, ops=("rms_norm",))
    assert {row.bucket for row in plan.rows if "inductor" in row.compiling} == set(COMPILING_SIZES)
    assert all(not {"inductor", "reference", "helion"} & set(row.rivals) for row in plan.rows)
    assert all("torch" in row.rivals for row in plan.rows)
    alone = make_plan(tuned_model("qwen3-0.6b"), SM_90, lambda provider, contract: "not here", ops=("rms_norm",))
    assert all(row.rivals == row.compiling == () for row in alone.rows)


def test_unknown_names_say_what_there_is():
    with pytest.raises(ConfigError, match=r"qwen3-8b are; a folder with a config\.json will do too|folder"):
        tuned_model("gpt-2")
    with pytest.raises(ConfigError, match="there is no quantization 'int3'"):
        tuned_model("qwen3-8b", "int3")
    with pytest.raises(ConfigError, match="multiples of 128"):
        tuned_model("smollm2-135m", "fp8_block")
    with pytest.raises(ConfigError, match="there is no op 'conv'"):
        make_plan(tuned_model("qwen3-8b"), SM_90, refuses, ops=("conv",))
    with pytest.raises(ConfigError, match=r"calls no scaled_mm; it calls argmax, embedding"):
        make_plan(tuned_model("qwen3-8b"), SM_90, refuses, ops=("scaled_mm",))


def test_a_folder_with_a_config_is_a_model(tmp_path: Path):
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "sliding_window": 128,
    }
    folder = tmp_path / "my-mistral"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    model = tuned_model(str(folder), "fp8_per_token")
    assert (model.name, model.num_layers) == ("my-mistral", 3)
    counts = layer_contracts(model, SM_90)
    [attention] = [contract for contract in counts if isinstance(contract, FusedRopeAttention)]
    assert (attention.sliding_window, counts[attention]) == (128, 3)


@pytest.mark.parametrize(("quantization", "op"), [("fp8_per_token", "weight_only_mm"), ("fp8_block", "linear")])
def test_without_8_bit_floats_other_products_are_called(quantization: str, op: str):
    counts = layer_contracts(tuned_model("qwen3-8b", quantization), gemm_target("sm_80"))
    products = {contract.name for contract in counts if gemm_of(contract, SM_90) is not None}
    assert products == {op}
    assert not any("quant" in contract.name for contract in counts)


def test_amds_gpus_quantize_activations_whatever_format_their_matrix_unit_takes():
    """As the engine does there; see ``platform.device.has_float8``."""
    model = tuned_model("qwen3-8b", "fp8_per_token")
    on = {name: set(layer_contracts(model, gemm_target(name))) for name in ("gfx942", "gfx950", "sm_90")}
    assert on["gfx942"] == on["gfx950"] == on["sm_90"]


def test_buckets_that_launch_the_same_programs_are_one_group():
    plan = make_plan(
        tuned_model("qwen3-8b", "fp8_per_token"), SM_90, refuses, ops=("scaled_mm", "fused_rope_attention")
    )
    groups = grouped(plan.rows, lambda row: row)
    shared = [[row.bucket for row in group] for group in groups if len(group) > 1]
    assert shared == [[1, 2, 4, 8, 16]] * 4
    assert sum(map(len, groups)) == len(plan.rows)


def test_an_estimate_counts_what_is_compiled_once_for_several_rows():
    plan = make_plan(tuned_model("qwen3-8b", "fp8_per_token"), SM_90, refuses, ops=("scaled_mm",), sizes=(1, 8, 16))
    found = estimate(plan, EFFORTS["quick"], cores=4)
    assert (found.num_rows, found.num_groups) == (12, 4)
    assert found.num_compiled == 4 * EFFORTS["quick"].gemms
    assert found.compile_s == pytest.approx(COMPILE_S * found.num_compiled / 4)
    assert str(found.num_compiled) in found.formula


@pytest.mark.parametrize("contract", [GEMM, ScaledMm(12288, 4096), ScaledMm(4096, 4096)])
def test_for_few_tokens_the_first_candidates_are_those_that_are_known_to_do_well(contract: ScaledMm):
    first = ranked(contract, 16, SM_90)[:6]
    for config in first:
        programs = config.split_k * math.ceil(contract.out_features / config.block_n)
        assert config.swap_ab
        assert config.block_m == 16
        assert 96 <= programs <= 800
    assert max(config.block_k for config in first) >= 256


def test_for_many_tokens_the_first_candidates_are_large_tiles():
    for config in ranked(GEMM, 8192, SM_90)[:4]:
        assert config.block_m * config.block_n >= 128 * 128
        assert config.split_k == 1


def test_the_first_of_every_kind_comes_before_the_second_of_any():
    assert spread([1, 2, 3, 4, 5], "aabac") == [1, 3, 5, 2, 4]
    tiles = [(c.block_m, c.block_n, c.block_k, c.swap_ab) for c in ranked(GEMM, 256, SM_90)[:12]]
    assert len(set(tiles)) == 12


def test_what_must_be_tried_is_kept_and_counted():
    assert kept([1, 2, 3, 4], 3, [9, 2]) == [9, 2, 1]
    assert kept([1, 2], 1, [7, 8, 7]) == [7, 8]


def test_a_config_that_no_processor_can_hold_is_predicted_to_take_for_ever():
    shape = gemm_of(GEMM, SM_90)
    assert shape is not None
    too_deep = GemmConfig(128, 256, 512, num_stages=6, num_warps=8)
    assert predicted_us(too_deep, shape, 1024, SM_90) == math.inf


def test_programs_that_cannot_run_are_dropped_in_words():
    built = program((GEMM, 16, GemmConfig(16, 64, 128)), 0)
    assert why_dropped([built], target("sm_90")) is None
    greedy = Program(msgspec.structs.replace(built.binary, shared_bytes=300_000), built.data)
    assert "shared memory" in (why_dropped([built, greedy], target("sm_90")) or "")
    wide = Program(msgspec.structs.replace(built.binary, registers=255, num_warps=16), built.data)
    assert "registers" in (why_dropped([wide], target("sm_90")) or "")


def test_neighbours_differ_in_one_choice_by_one_step_and_fit():
    config = GemmConfig(16, 64, 256, True, 4, 4, 4)
    found = neighbours(config, GEMM, 16, SM_90)
    assert replace(config, num_stages=5) in found
    assert replace(config, block_k=128) in found
    assert replace(config, block_n=128) in found
    assert replace(config, num_warps=8) in found
    assert {each.split_k for each in found if each.block_k == 256} >= {3, 4}
    assert config not in found
    assert all(each.group_m == 1 for each in found)
    assert any(each.group_m == 2 for each in neighbours(replace(config, block_m=128), GEMM, 1024, SM_90))


def test_neighbours_keep_steps_within_a_group_of_scales():
    config = GemmConfig(16, 64, 128, True, 4, 4, 4)
    assert {each.block_k for each in neighbours(config, ScaledMmBlockwise(4096, 6144), 16, SM_90)} == {64, 128}


def test_neighbours_of_other_ops_are_its_candidates_that_differ_in_one_field():
    norm = RmsNorm(4096)
    usual, *others = ranked(norm, 16, SM_90)
    assert set(neighbours(usual, norm, 16, SM_90)) == {each for each in others if each.block_sizes == (1,)}


def test_algorithms_take_turns():
    found = ranked(WeightOnlyMv(4096, 6144), 1, SM_90)
    assert [config.on_matrix_unit for config in found[:6]] == [False, True] * 3


@pytest.mark.parametrize("bucket", [1, 16, 256])
def test_ways_to_look_block_numbers_up_take_turns_and_the_deepest_pipelines_are_among_the_first(bucket: int):
    attention = FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6)
    found = ranked(attention, bucket, SM_90)
    # Beside the other program of the op.
    kinds = [
        (RopeAttentionConfig, False, True),
        (RopeAttentionConfig, False, False),
        (DecodeAttentionConfig, False, True),
    ]
    assert [algorithm(config) for config in found[:6]] == kinds * 2
    # For many rows there are few of the other program, so that these have more turns.
    in_iteration = [config for config in found[: 3 * FIRST_OF_OTHERS] if not config.lookup_ahead][:FIRST_OF_OTHERS]
    assert len(in_iteration) == FIRST_OF_OTHERS
    assert all(config.programmatic and config.ahead == 64 for config in in_iteration)
    for name, values in {
        "decode_stages": {5, 7},
        "decode_warps": {4, 8},
        "programs": {64, 128},
        "prefetched": {0, 64},
    }.items():
        assert {getattr(config, name) for config in in_iteration} == values


def test_distance_counts_doublings_and_knows_no_way_to_another_dtype():
    assert distance(GEMM, 16, ScaledMm(8192, 6144), 32) == pytest.approx(2.0)
    assert distance(GEMM, 16, ScaledMm(4096, 6144, torch.int8), 16) == math.inf
    assert distance(GEMM, 16, RmsNorm(4096), 16) == math.inf


def test_the_nearest_winners_come_first_and_are_made_to_fit():
    at_32 = GemmConfig(32, 64, 128, True, 2, 4, 4)
    elsewhere = GemmConfig(16, 128, 256, True, 8, 4, 3)
    winners = [Winner(ScaledMm(512, 512), 16, elsewhere), Winner(GEMM, 32, at_32), Winner(RmsNorm(64), 16, at_32)]
    assert nearest(winners, GEMM, 16, SM_90) == [replace(at_32, block_m=16), elsewhere]
    assert nearest(winners, GEMM, 16, SM_90, count=1) == [replace(at_32, block_m=16)]


def test_a_config_that_does_not_fit_another_row_is_no_seed():
    deep = GemmConfig(16, 128, 512, True, 1, 4, 3)
    assert fitted(deep, GEMM, 16, SM_90) == deep
    assert fitted(deep, GEMM, 16, gemm_target("sm_89")) is None
    narrow = ScaledMm(256, 6144)
    assert fitted(replace(deep, split_k=8, block_k=128), narrow, 16, SM_90).split_k == 2


def test_only_packs_that_were_measured_on_the_target_narrow_the_search():
    row = sample.row(16, GEMM.key(), op="scaled_mm", best=_candidate(4.0))
    assert SeedBank([sample.pack(rows=(row,))], SM_90).narrows("scaled_mm")
    assert not SeedBank([sample.pack(rows=(row,))], SM_90).narrows("linear")
    assert not SeedBank([sample.pack(rows=(row,))], gemm_target("sm_100")).narrows("scaled_mm")
    unmeasured = SeedBank(
        [sample.pack(rows=(sample.row(16, GEMM.key(), op="scaled_mm", best=_candidate(0.0)),))], SM_90
    )
    assert not unmeasured.narrows("scaled_mm")
    assert unmeasured.seeds(GEMM, 16) == [GemmConfig(16, 64, 128, True)]


def test_rows_that_are_not_known_here_are_counted():
    rows = (sample.row(16, "conv(k=3)", op="conv", best=_candidate(1.0)),)
    bank = SeedBank([sample.pack(rows=rows)], SM_90)
    assert bank.notes == [f"seed pack {sample.pack().name}: 1 of 1 rows are not known here"]


def _candidate(time_us: float) -> Any:
    config = {"block_m": 16, "block_n": 64, "block_k": 128, "swap_ab": True}
    return sample.candidate("helion", time_us, config)


def test_stop_rules():
    assert is_near_floor(10.4, 10.0)
    assert not is_near_floor(10.6, 10.0)
    assert share_to_gain(12.0, 10.0, 3, 600.0) == pytest.approx(0.01)
    assert share_to_gain(9.0, 10.0, 3, 600.0) == 0.0
    assert is_done(20.0, 10.0, 1, 10_000.0)
    assert not is_done(20.0, 10.0, 3, 10_000.0)
    assert is_done(20.0, 10.0, 3, 10_000.0, least_share=0.01)
    assert has_gained(10.0, 9.8)
    assert not has_gained(10.0, 9.95)


def test_halving_gives_time_to_those_that_do_well():
    rounds: dict[int, int] = {}

    def time(configs: Sequence[int], timing: Any, check: bool) -> dict[int, Outcome]:
        for config in configs:
            rounds[config] = rounds.get(config, 0) + timing.rounds
        assert check == (timing == FULL)
        return {config: Outcome("helion", config, summarize([1.0 + config])) for config in configs}

    search(time, [*reversed(range(30))], None)
    assert [rounds[config] for config in range(3)] == [FIRST.rounds + SECOND.rounds + FULL.rounds] * 3
    assert [rounds[config] for config in range(3, 10)] == [FIRST.rounds + SECOND.rounds] * 7
    assert [rounds[config] for config in range(10, 30)] == [FIRST.rounds] * 20


def test_halving_checks_no_one_who_is_hopeless_and_goes_on_until_one_is_right():
    checked: list[int] = []

    def time(configs: Sequence[int], timing: Any, check: bool) -> dict[int, Outcome]:
        checked.extend(configs if check else ())
        wrong = "wrong" if check and configs[0] < 6 else None
        return {c: Outcome("helion", c, None if wrong else summarize([10.0 + c]), problem=wrong) for c in configs}

    search(time, range(12), None)
    assert checked == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    checked.clear()
    search(time, range(12), 9.5)
    assert checked == [0]


def test_compiling_goes_on_beside_and_what_is_given_up_is_cancelled():
    may_go_on = threading.Event()

    class Slow(FakeCompiler):
        def compile(
            self, requests: Sequence[Request], more: Callable[[], Sequence[Request]] = no_more
        ) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
            for result in super().compile(requests, more):
                yield result
                may_go_on.wait(10)

    requests = [(GEMM, 16, GemmConfig(16, 64, 128, num_stages=stages)) for stages in (2, 3, 4)]
    ahead = CompileAhead(Slow())
    try:
        first, rest = ahead.submit(requests[:1]), ahead.submit(requests[1:])
        assert list(first.result(10)) == requests[:1]
        assert not rest.done()
        threading.Timer(0.05, may_go_on.set).start()
        ahead.cancel()
        assert rest.cancelled()
        again = ahead.submit(requests).result(10)
        assert [len(built) for built, _ in (again[request] for request in requests)] == [1, 1, 1]
        assert ahead.submit([]).result(10) == {}
    finally:
        ahead.close()


def test_a_compiler_that_breaks_is_heard_of_and_the_thread_goes_on():
    compiler = FakeCompiler(fails=lambda request: 1 // 0)
    ahead = CompileAhead(compiler)
    try:
        with pytest.raises(ZeroDivisionError):
            ahead.submit([(GEMM, 16, GemmConfig(16, 64, 128))]).result(10)
        compiler.fails = lambda request: "no"
        assert next(iter(ahead.submit([(GEMM, 16, None)]).result(10).values())) == ("no", 0.5)
    finally:
        ahead.close()


def test_a_config_that_can_be_timed_and_not_built_to_serve_is_struck_and_the_next_one_serves():
    row = RowState(PlannedRow(GEMM, 16, 1), 1.0, None)
    first, second = (GemmConfig(16, 64, 128, num_stages=stages) for stages in (2, 3))
    for config, microseconds in ((first, 2.0), (second, 3.0)):
        row.met(("helion", config), Outcome("helion", config, summarize([microseconds])), 0.1, is_final=True)
    row.chosen = ("helion", first)

    class Programs:
        def attempted(self, requests: Sequence[Request]) -> dict[Request, Any]:
            return {each: "no room" if each[2] == first else () for each in requests}

    served, own = _built_to_serve([row], Programs())  # type: ignore[arg-type]
    assert (served, own) == ([row], {row: ()})
    assert row.serving is not None
    assert row.serving.config == second
    assert row.problems == {("helion", first): "no room"}
