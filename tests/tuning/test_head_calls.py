"""What is built and tuned for a draft head is what a real one calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.bench.compare.checkpoint import QWEN3_8B, write_head_config
from parhelion.distributed.group import Group
from parhelion.errors import ConfigError
from parhelion.layers.fusions import FUSED, ON_GPU
from parhelion.layers.program import PLAIN, Plan
from parhelion.models.decoder import BuildOptions
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import Eagle3Config, read_eagle3_config
from parhelion.models.weights import DummyWeights
from parhelion.ops.block_times import key_of_programs
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.registry import needs_other_ranks, own_parts
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED
from parhelion.tuning.head_calls import (
    HEADS,
    TunedHead,
    head_contracts,
    is_head,
    served_head_contracts,
    shared_head_contracts,
    tuned,
    tuned_head,
)
from parhelion.tuning.model_calls import TunedModel, edge_contracts, layer_contracts, tuned_model
from parhelion.tuning.model_contracts import BLOCK_SIZE
from parhelion.tuning.plan import MOST_SAMPLED, make_plan, refuses
from tests.e2e.eagle3_scratch import cache, whole
from tests.engine.device_cores import core_of, greedy_and_drawn_requests, run
from tests.engine.test_device_head import random_head as random_head
from tests.engine.test_device_head import target as target
from tests.models.eagle3_heads import (
    CPU,
    HEAD,
    LAYER,
    ORIGINAL_JSON,
    SPECULATORS_JSON,
    HeldWeights,
    head_tensors,
    write_head,
)
from tests.models.test_eagle3 import HEADS as KINDS

SM_90 = gemm_target("sm_90")


class Calls(Resolver):
    """Remembers what is looked for, and what is called."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self._serves = Resolver(CPU, {"all_reduce": "reference"})
        self.asked: list[Contract] = []
        self.called: Counter[Contract] = Counter()

    def launcher(self, contract: Contract) -> Launcher:
        return self._counted(contract, self._serves.launcher(contract))

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        return self._counted(contract, self._serves.bind(contract, *weights))

    def _counted(self, contract: Contract, launch: Launcher) -> Launcher:
        self.asked.append(contract)

        def counted(*inputs: Any) -> Any:
            self.called[contract] += 1
            return launch(*inputs)

        return counted


class Unbiased(DummyWeights):
    """Numbers of a head whose product that fuses hidden states has no bias, as those that are published."""

    def __init__(self) -> None:
        super().__init__(0, False, UNQUANTIZED, CPU, torch.float32)

    def has(self, name: str) -> bool:
        return super().has(name) and name != "fc.bias"


def options(resolver: Resolver, plan: Plan, config: Eagle3Config, group: Group | None = None) -> BuildOptions:
    return BuildOptions(
        dtype=torch.float32,
        storage_dtype=torch.float32,
        scheme=UNQUANTIZED,
        plans=(plan,),
        resolver=resolver,
        block_size=BLOCK_SIZE,
        max_model_len=config.layer.max_position,
        group=group or Group(),
    )


@pytest.mark.parametrize("plan", [PLAIN, FUSED, ON_GPU[0]], ids=["plain", "fused", "on a GPU"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_and_a_guess_call_what_is_listed_and_as_often(kind: str, plan: Plan):
    config, resolver = KINDS[kind], Calls()
    first = "midlayer" if config.layer.num_layers == 1 else "layers.0"
    head = Eagle3Head(config, HeldWeights(head_tensors(config, first)), options(resolver, plan, config))
    listed = head_contracts(TunedHead("tiny", config), torch.float32, plan)
    states = torch.randn(7, config.num_features * config.target_hidden_size)
    normed, _ = head.forward(whole(config.layer, list(range(1, 8))), head.features(states), cache(config.layer, 7))
    head.likeliest(normed[-1:])
    assert resolver.called == listed
    assert set(listed) <= set(served_head_contracts(TunedHead("tiny", config), torch.float32))


def test_prefilling_catching_up_and_guessing_call_nothing_else(
    target: Path, random_head: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
):
    """All passes of a worker, those that draw their guesses included, with prompts in chunks and rows that follow."""
    called, within = set[str](), [0]
    bind, launcher = Resolver.bind, Resolver.launcher

    def noted(contract: Contract, launch: Launcher) -> Launcher:
        def call(*inputs: Any) -> Any:
            if within[0]:
                called.add(key_of_programs(contract.key()))
            return launch(*inputs)

        return call

    def entered(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            within[0] += 1
            try:
                return method(*arguments)
            finally:
                within[0] -= 1

        return call

    monkeypatch.setattr(Resolver, "launcher", lambda self, contract: noted(contract, launcher(self, contract)))
    monkeypatch.setattr(Resolver, "bind", lambda self, contract, *w: noted(contract, bind(self, contract, *w)))
    for name in ("features", "forward", "likeliest", "compute_logits"):
        monkeypatch.setattr(Eagle3Head, name, entered(getattr(Eagle3Head, name)))
    monkeypatch.setattr("parhelion.tuning.head_calls.BLOCK_SIZE", 4)
    core = core_of(target, True, True, 1000, draft=random_head[0])
    run(core, greedy_and_drawn_requests())
    assert core.stats().guessed_tokens_total > 100
    listed = head_contracts(tuned_head(str(random_head[0])), torch.float32, PLAIN)
    assert called == {key_of_programs(contract.key()) for contract in listed}


@pytest.mark.parametrize("plan", [PLAIN, ON_GPU[0]], ids=["plain", "on a GPU"])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_ranks_contracts_are_those_of_a_real_ranks_head(tmp_path: Path, tp: int, plan: Plan):
    folder = write_head(tmp_path / "mine", ORIGINAL_JSON)
    head, resolver = tuned_head(str(folder), tp), Calls()
    assert (head.name, head.tp) == ("mine", tp)
    Eagle3Head(head.config, Unbiased(), options(resolver, plan, head.config, Group(tp - 1, tp)))
    assert Counter(own_parts(resolver.asked)) == head_contracts(head, torch.float32, plan)
    together = Counter(each for each in resolver.asked if needs_other_ranks(each))
    assert (together == shared_head_contracts(head, torch.float32)) == (plan == ON_GPU[0])


def test_a_head_that_cannot_be_divided_is_whole_on_every_rank(tmp_path: Path):
    folder = write_head(tmp_path / "mine", ORIGINAL_JSON)
    assert tuned_head(str(folder), 3) == tuned_head(str(folder), 1)
    assert head_contracts(tuned_head(str(folder), 3)) == head_contracts(TunedHead("mine", HEAD))


def test_a_listed_head_calls_what_one_of_that_size_as_published_calls(tmp_path: Path):
    folder = write_head_config(QWEN3_8B, tmp_path / "head")
    published = head_contracts(tuned_head(str(folder)))
    listed = head_contracts(tuned_head("qwen3-8b-eagle3"))
    assert {key_of_programs(each.key()): count for each, count in published.items()} == {
        key_of_programs(each.key()): count for each, count in listed.items()
    }


def test_what_it_has_in_common_with_its_target_is_the_same_contract():
    of_target = tuned_model("qwen3-8b")
    of_tokens, of_requests = edge_contracts(of_target)
    theirs = {*of_tokens, *of_requests, *layer_contracts(of_target, SM_90)}
    shared = {each.name for each in head_contracts(tuned_head("qwen3-8b-eagle3")) if each in theirs}
    assert shared == {"embedding", "fused_add_rms_norm", "linear", "rms_norm", "silu_and_mul"}


def test_heads_of_both_formats_are_told_from_models(tmp_path: Path):
    for name, config in (("original", ORIGINAL_JSON), ("other", SPECULATORS_JSON)):
        folder = write_head(tmp_path / name, config)
        assert is_head(str(folder))
        found = tuned(str(folder))
        assert found == TunedHead(name, read_eagle3_config(folder))
        assert (found.quantization, found.lm_head_quantization) == (UNQUANTIZED, None)
    assert not is_head("qwen3-8b")
    assert isinstance(tuned("qwen3-8b"), TunedModel)
    assert all(is_head(name) for name in HEADS)


def test_a_head_is_not_quantized():
    assert tuned("qwen3-8b-eagle3", "unquantized") == tuned_head("qwen3-8b-eagle3")
    with pytest.raises(ConfigError, match="never quantized: leave --quantization out"):
        tuned("qwen3-8b-eagle3", "fp8_per_token")
    with pytest.raises(ConfigError, match="never quantized: leave --lm-head-quantization out"):
        tuned("qwen3-8b-eagle3", lm_head_quantization="int8")


@pytest.mark.parametrize("tp", [1, 2])
def test_its_rows_are_of_every_bucket_and_those_of_its_vocabulary_of_as_many_as_requests(tp: int):
    plan = make_plan(tuned_head("qwen3-8b-eagle3", tp), SM_90, refuses)
    counts = head_contracts(tuned_head("qwen3-8b-eagle3", tp))
    assert {row.contract: row.weight for row in plan.rows} == counts
    most = {row.contract: row.bucket for row in plan.rows}
    few = {each for each, bucket in most.items() if bucket == MOST_SAMPLED}
    vocabulary = {(each.name, getattr(each, "out_features", None)) for each in few}
    assert vocabulary == {("linear", 32000 // tp), ("argmax", None)}
    assert {bucket for each, bucket in most.items() if each not in few} == {8192}
    assert not any(row.is_alternative for row in plan.rows)
    names = [note.split()[0] for note in plan.notes]
    assert names == ([] if tp == 1 else ["all_reduce", "all_reduce_rms_norm"])


def test_an_op_that_it_does_not_call_is_refused():
    with pytest.raises(ConfigError, match=r"qwen3-8b-eagle3 \(unquantized\) calls no scaled_mm; it calls argmax, "):
        make_plan(tuned_head("qwen3-8b-eagle3"), SM_90, refuses, ops=("scaled_mm",))


def test_windows_and_biases_are_its_own():
    config = replace(HEAD, layer=replace(LAYER, sliding_windows=(5,), attention_bias=True))
    contracts = head_contracts(TunedHead("tiny", config))
    assert {each.sliding_window for each in contracts if each.name == "fused_rope_attention"} == {5}  # type: ignore[attr-defined]
    assert sum(each.bias for each in contracts if each.name == "linear") == 1  # type: ignore[attr-defined]
