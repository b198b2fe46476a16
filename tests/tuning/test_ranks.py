"""What is tuned for one of several ranks is what a rank of a real model calls by itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.distributed.group import Group
from parhelion.engine.device.sampling import DeviceSampler
from parhelion.engine.device.state import DeviceState
from parhelion.errors import ConfigError
from parhelion.layers.alternatives import Alternatives
from parhelion.layers.fusions import ON_GPU, SINGLE_LAUNCH, SINGLE_TOKEN
from parhelion.layers.program import Program
from parhelion.models.checkpoint import read_model_config
from parhelion.models.decoder import BuildOptions, DecoderModel
from parhelion.models.qwen3 import Qwen3ForCausalLM
from parhelion.models.weights import DummyWeights
from parhelion.ops.argmax import Argmax
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.linear import Linear
from parhelion.ops.registry import needs_other_ranks, own_parts
from parhelion.ops.resolve import Resolver
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.quantization import (
    FP8_PER_TOKEN,
    UNQUANTIZED,
    QuantScheme,
    RequestedQuantization,
    choose_head_scheme,
)
from parhelion.tuning.layer_stack import LayerStack
from parhelion.tuning.model_calls import (
    TunedModel,
    edge_contracts,
    head_ways,
    layer_contracts,
    layer_ways,
    left_to_ranks,
    served_contracts,
    tuned_model,
)
from parhelion.tuning.model_contracts import BLOCK_SIZE
from parhelion.tuning.plan import make_plan, refuses

CPU = torch.device("cpu")
SM_90 = gemm_target("sm_90")
MAX_POSITION = 1024
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 1001,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": MAX_POSITION,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("ranks") / "tiny"
    where.mkdir()
    (where / "config.json").write_text(json.dumps(CONFIG))
    return where


class Recorder(Resolver):
    """Remembers every contract that it was asked for. The group is none: nobody computes here."""

    def __init__(self) -> None:
        super().__init__(CPU, {"all_reduce": "reference"})
        self.asked: set[Contract] = set()

    def launcher(self, contract: Contract) -> Launcher:
        self.asked.add(contract)
        return super().launcher(contract)

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        self.asked.add(contract)
        return super().bind(contract, *weights)


def rank_of(
    folder: Path, tp: int, scheme: QuantScheme, plan: int, head: RequestedQuantization | None = None
) -> tuple[Recorder, DecoderModel]:
    """The last rank's part of the model, as a GPU would build it."""
    resolver = Recorder()
    weights = DummyWeights(0, False, scheme, CPU, torch.bfloat16)
    options = BuildOptions(
        dtype=torch.bfloat16,
        storage_dtype=torch.bfloat16,
        scheme=scheme,
        plans=(ON_GPU[plan],),
        resolver=resolver,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_POSITION,
        head_scheme=choose_head_scheme(head),
        group=Group(tp - 1, tp),
    )
    return resolver, Qwen3ForCausalLM(read_model_config(folder), weights, options)


@pytest.mark.parametrize("plan", range(len(ON_GPU)))
@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, UNQUANTIZED], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_contracts_are_those_of_a_real_ranks_programs(folder: Path, tp: int, scheme: QuantScheme, plan: int):
    resolver, model = rank_of(folder, tp, scheme, plan)
    tuned = tuned_model(str(folder), scheme.name, tp)
    counts: Counter[Contract] = Counter()
    for layer in model._layers:
        assert isinstance(layer, Program)
        counts.update(own_parts(layer.contracts))
    final = layer_contracts(tuned, SM_90, plan=ON_GPU[plan]) - counts
    assert [(contract.name, count) for contract, count in final.items()] == [("fused_add_rms_norm", 1)]
    assert not counts - layer_contracts(tuned, SM_90, plan=ON_GPU[plan])
    # What the worker asks for beside the model.
    DeviceState(4, MAX_POSITION, BLOCK_SIZE, CPU, resolver)
    DeviceSampler(model.config.vocab_size, torch.bfloat16, resolver)
    of_tokens, of_requests = edge_contracts(tuned)
    planned = {*of_tokens, *of_requests, *layer_contracts(tuned, SM_90, plan=ON_GPU[plan])}
    assert set(own_parts(resolver.asked)) == planned


@pytest.mark.parametrize("plan", range(len(ON_GPU)))
@pytest.mark.parametrize("head", ["fp8", "int8"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_quantized_head_calls_what_is_planned_for_it(folder: Path, tp: int, head: RequestedQuantization, plan: int):
    resolver, _ = rank_of(folder, tp, UNQUANTIZED, plan, head)
    tuned = tuned_model(str(folder), None, tp, head)
    way = head_ways(tuned, SM_90)[plan]
    assert [each.name for each in way][-1] == (
        "weight_only_mv" if ON_GPU[plan] in (SINGLE_TOKEN, SINGLE_LAUNCH) else "scaled_mm"
    )
    products = {each for each in resolver.asked if isinstance(each, ScaledMm | WeightOnlyMv)}
    assert products == {each for each in way if isinstance(each, ScaledMm | WeightOnlyMv)}
    assert set(way) <= resolver.asked
    # And what a pack is built with has all of it.
    built = served_contracts(tuned, SM_90)
    assert set(way) <= set(built)
    assert not any(isinstance(each, Linear) and each.out_features == tuned.rank_shape.vocab_size for each in built)


def test_the_blocks_that_are_measured_are_those_that_a_server_looks_up(folder: Path):
    looked_up = []

    class Asked(Recorder):
        def block_us(self, way: Any, num_tokens: int) -> float | None:
            looked_up.append(tuple(way))
            return 1.0

    resolver = Asked()
    options = BuildOptions(
        dtype=torch.bfloat16,
        storage_dtype=torch.bfloat16,
        scheme=FP8_PER_TOKEN,
        plans=ON_GPU,
        resolver=resolver,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_POSITION,
        group=Group(0, 2),
    )
    weights = DummyWeights(0, False, FP8_PER_TOKEN, CPU, torch.bfloat16)
    model = Qwen3ForCausalLM(read_model_config(folder), weights, options)
    assert not any(isinstance(layer, Alternatives) for layer in model._layers)
    tuned = tuned_model(str(folder), "fp8_per_token", 2)
    assert set(looked_up) == {tuple(way) for way in (*layer_ways(tuned, SM_90), *head_ways(tuned, SM_90))}


def test_a_block_of_the_tuner_has_a_ranks_shapes_and_adds_nothing_up(folder: Path):
    tuned = tuned_model(str(folder), "fp8_per_token", 2)
    stack = LayerStack(tuned, 2, CPU, num_layers=2)
    assert not any(needs_other_ranks(each) for each in stack.contracts)
    assert set(stack.contracts) <= set(layer_contracts(tuned, SM_90))
    references = dict.fromkeys((contract.name for contract in stack.contracts), "reference")
    hidden, residual = stack.bound(Resolver(CPU, references))()
    assert hidden.shape == residual.shape == (2, 128)


def test_what_all_ranks_do_together_is_left_out_and_named():
    alone, shared = (make_plan(tuned_model("qwen3-8b", "fp8_per_token", tp), SM_90, refuses) for tp in (1, 2))
    assert alone.notes == ()
    assert left_to_ranks(shared.model, SM_90) == ("all_reduce", "all_reduce_rms_norm")
    named = [note.partition(" needs all 2 ranks, so it is not tuned: ")[0] for note in shared.notes]
    assert named == ["all_reduce", "all_reduce_rms_norm"]
    assert not any(needs_other_ranks(row.contract) for row in shared.rows)
    # Half the heads, half the feed-forward; the norms are those of one rank.
    products = {row.contract for row in shared.rows if isinstance(row.contract, ScaledMm)}
    sizes = {(product.out_features, product.in_features) for product in products}
    assert sizes == {(3072, 4096), (4096, 2048), (12288, 4096), (4096, 6144)}
    norms = [{row.contract for row in plan.rows if "norm_dynamic" in row.contract.name} for plan in (alone, shared)]
    assert norms[0] == norms[1]


def test_an_uneven_vocabulary_is_padded_and_shared_kv_heads_are_held_whole(folder: Path):
    tuned = tuned_model(str(folder), None, 4)
    assert tuned.rank_shape.num_kv_heads == 1
    assert tuned.rank_shape.vocab_size == 251
    assert {each.vocab_size for each in edge_contracts(tuned)[1] if isinstance(each, Argmax)} == {1001, 251, 4}


def test_a_built_pack_has_all_that_a_tuned_one_has(folder: Path):
    for tp in (1, 2):
        tuned: TunedModel = tuned_model("qwen3-8b", "fp8_per_token", tp)
        of_tokens, of_requests = edge_contracts(tuned)
        called = {*of_tokens, *of_requests, *layer_contracts(tuned, SM_90)}
        assert called <= set(served_contracts(tuned, SM_90))


@pytest.mark.parametrize(
    ("model", "scheme", "tp", "said"),
    [
        ("smollm2-135m", None, 2, r"tp is 2, but 9 heads are no multiple of tp 2; tp may be 1, 3$"),
        ("qwen3-8b", "fp8_per_token", 3, r"tp is 3, but 32 heads are .* tp may be 1, 2, 4, 8, 16, 32$"),
    ],
)
def test_ranks_that_cannot_share_a_model_are_refused_with_sizes_that_work(
    model: str, scheme: str | None, tp: int, said: str
):
    with pytest.raises(ConfigError, match=said):
        tuned_model(model, scheme, tp)
    assert replace(tuned_model(model), tp=1).rank_shape == tuned_model(model).shape
