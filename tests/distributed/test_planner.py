"""The search: what it prefers, what it refuses and in which words, and that thousands of GPUs are few layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parhelion.cli.planned_model import calls_of, known_times, model_size
from parhelion.distributed.kernel_times import KernelTimes
from parhelion.distributed.layouts import Layout, layouts
from parhelion.distributed.planner import Workload, plan_layouts, what_fits
from parhelion.distributed.step_model import StepModel
from parhelion.errors import ConfigError
from parhelion.ops.gemm.target import gemm_target
from parhelion.packs.location import SHIPPED
from parhelion.quantization import FP8_BLOCK
from parhelion.tuning.model_calls import tuned_model
from tests.distributed.sample import FABRIC, H100, qwen3_8b

GIB = 1 << 30


def steps_of(name: str = "qwen3-8b", quantization: str = "fp8_per_token") -> StepModel:
    model = tuned_model(name, quantization)
    size = model_size(model, name)
    return StepModel(size, calls_of(model, size, gemm_target("sm_90")), KernelTimes(H100), FABRIC)


STEPS = steps_of()


@pytest.mark.parametrize("num_gpus", [8, 4096])
def test_every_layout_is_ranked_or_refused(num_gpus: int) -> None:
    planned = plan_layouts(STEPS, 80 * GIB, num_gpus, Workload())
    named = [each.layout for each in planned.ranked] + [each.layout for each in planned.refused]
    assert sorted(map(str, named)) == sorted(map(str, layouts(num_gpus)))


def test_latency_shares_layers_and_throughput_replicates() -> None:
    latency = plan_layouts(STEPS, 80 * GIB, 8, Workload()).ranked[0].layout
    throughput = plan_layouts(STEPS, 80 * GIB, 8, Workload(objective="throughput")).ranked[0]
    assert latency.tp > 1
    assert throughput.layout == Layout(1, 1, 8)
    assert throughput.batch == 256


def test_of_equal_layouts_the_smaller_replica_is_preferred_and_idle_gpus_are_named() -> None:
    planned = plan_layouts(STEPS, 80 * GIB, 64, Workload())
    assert planned.ranked[0].layout.pp == 1
    assert any("replicas have nothing to do" in each for each in planned.why)


def test_a_model_that_does_not_fit_says_how_many_gpus_would_do() -> None:
    with pytest.raises(ConfigError, match=r"8\.8 GiB of weights .*; 2 GPUs would do"):
        plan_layouts(STEPS, 10 * GIB, 1, Workload())
    assert plan_layouts(STEPS, 10 * GIB, 2, Workload()).ranked


def test_a_batch_that_does_not_fit_names_the_one_that_does() -> None:
    with pytest.raises(ConfigError, match="at most --batch"):
        plan_layouts(STEPS, 16 * GIB, 1, Workload(batch=200))
    with pytest.raises(ConfigError, match="--max-num-seqs"):
        plan_layouts(STEPS, 80 * GIB, 1, Workload(batch=300))


@pytest.mark.parametrize(
    ("num_gpus", "tp", "pp", "said"),
    [
        (6, 6, None, "32 heads are no multiple of tp 6; tp may be"),
        (8, 6, None, "tp may be"),
        (12, 8, None, "such as --gpus 16"),
        (64, 1, 64, "36 layers are too few for pp 64"),
        (8, 0, None, "at least 1"),
        (0, None, None, "at least 1"),
    ],
)
def test_layouts_that_cannot_be_are_refused_with_sizes_that_work(
    num_gpus: int, tp: int | None, pp: int | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_layouts(STEPS, 80 * GIB, num_gpus, Workload(), tp, pp)


def test_asked_layouts_alone_are_planned() -> None:
    planned = plan_layouts(STEPS, 80 * GIB, 16, Workload(), tp=4, pp=2)
    assert [each.layout for each in planned.ranked] == [Layout(4, 2, 2)]


@pytest.mark.parametrize("name", ["input_len", "output_len", "batch", "max_num_seqs", "max_num_batched_tokens"])
def test_a_workload_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(Workload(), **{name: 0})


def test_what_fits_tells_quantizations_apart() -> None:
    odd = replace(qwen3_8b(FP8_BLOCK), intermediate_size=12288 + 128)
    fits = what_fits([qwen3_8b(), odd], Layout(2), 4, 80 * GIB, 8, Workload())
    assert [(each.quantization, each.tp, each.memory is None) for each in fits] == [
        ("fp8_per_token", 1, False),
        ("fp8_per_token", 2, False),
        ("fp8_per_token", 4, False),
        ("fp8_block", 1, False),
        ("fp8_block", 2, True),
        ("fp8_block", 4, True),
    ]


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-0.6b", "llama-3-8b", "qwen2.5-7b"])
def test_listed_models_have_a_plan(name: str) -> None:
    assert plan_layouts(steps_of(name, "unquantized"), 80 * GIB, 4, Workload()).ranked


def test_a_tuned_model_is_predicted_from_the_shipped_pack() -> None:
    known = known_times("h100", str(SHIPPED / "h100.zip"))
    steps = StepModel(STEPS.model, STEPS.calls_of, known.times, FABRIC)
    cost = plan_layouts(steps, known.device.memory_bytes, 1, Workload()).ranked[0].tpot.cost
    # Attention sees other rows than those that it was measured with.
    assert cost.measured > 0.8 * cost.total
    # Attention and ``step_inputs`` of today were not measured there.
    assert cost.floor < 0.04 * cost.total
