"""The kernel benchmark on a CPU: figures that add up, failures that stay in their rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from parhelion.bench.correctness import check_contract
from parhelion.bench.kernels import KernelRow, measure_case, measure_kernels, with_rivals
from parhelion.cli.main import build_app
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.inputs import empty_inputs, map_tensors, tensors_in
from parhelion.ops.kernel_timer import Timing, floor_us, random_inputs, rotating_inputs, time_launcher
from parhelion.ops.oracle import poison_free_memory
from parhelion.ops.provider import BaseProvider, ReferenceProvider
from parhelion.ops.rms_norm import RmsNorm
from parhelion.platform import ceilings as ceilings_module
from parhelion.platform.ceilings import Ceilings, best_seconds, measure_ceilings
from parhelion.platform.measure import summarize

CPU = torch.device("cpu")
FAST = Timing(rounds=3, warmup=1)
NORM = RmsNorm(64)
ROW = KernelRow("rms_norm", NORM.key(), 1, "a", summarize([2.0]), 1.0)


class Broken(BaseProvider):
    name = "broken"

    def launcher(self, contract: Contract) -> Launcher:
        raise RuntimeError("no such kernel\nand more")


class Refusing(Broken):
    name = "refusing"

    def refuses(self, contract: Contract) -> str:
        return "not here"


class Wrong(BaseProvider):
    name = "wrong"

    def launcher(self, contract: Contract) -> Launcher:
        return lambda x, weight: contract.reference(x, weight) * 1.01


def test_a_row_has_a_time_a_floor_and_the_share_of_it():
    [row] = measure_case(NORM, 3, [ReferenceProvider()], CPU, FAST)
    assert row.time_us is not None
    assert row.time_us.count == 3
    assert row.floor_us == floor_us(NORM, 3, measure_ceilings(CPU))
    assert row.of_floor == pytest.approx(row.floor_us / row.time_us.median)


def test_a_failing_provider_is_a_row_and_not_an_end():
    broken, good = measure_case(NORM, 3, [Broken(), ReferenceProvider()], CPU, FAST)
    assert broken.time_us is None
    assert broken.problem == "RuntimeError: no such kernel"
    assert good.time_us is not None


def test_rows_are_compared_with_the_fastest_other():
    rows = [ROW, replace(ROW, provider="b", time_us=summarize([4.0])), replace(ROW, provider="c", time_us=None)]
    assert [row.vs_best_rival for row in with_rivals(rows)] == [2.0, 0.5, None]


def test_progress_counts_every_case():
    seen: list[tuple[int, int]] = []
    rows = measure_kernels([NORM, RmsNorm(128)], [1, 2], CPU, ["reference", "torch"], FAST, lambda *x: seen.append(x))
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert [row.provider for row in rows] == ["reference", "torch"] * 4


def test_a_floor_is_the_longer_of_bytes_and_flops():
    ceilings = Ceilings("x", bandwidth=100.0, float32=10.0, bfloat16=None, float8=None, int8=None)
    assert ceilings.floor_s(1000, 50, "float32") == 10.0
    assert ceilings.floor_s(100, 500, "float32") == 50.0
    # Without a ceiling of that unit only the bytes count.
    assert ceilings.floor_s(100, 500, "int8") == 1.0


def test_ceilings_are_positive_and_measured_once():
    ceilings = measure_ceilings(CPU)
    assert ceilings.bandwidth > 1e8
    assert ceilings.float32 is not None
    assert ceilings.float32 > 1e8
    assert measure_ceilings(CPU) is ceilings


def test_runs_that_take_long_are_few(monkeypatch: pytest.MonkeyPatch):
    begun: list[Callable[[], object]] = []
    times = iter((0.17, 0.15, 0.1, *[0.01] * 5))

    def timed(work: Callable[[], object], device: torch.device) -> float:
        begun.append(work)
        return next(times)

    monkeypatch.setattr(ceilings_module, "_seconds", timed)
    # Two of them together take longer than all may.
    assert best_seconds(list, CPU) == 0.15
    assert len(begun) == 2
    next(times)
    assert best_seconds(list, CPU, rounds=5) == 0.01
    assert len(begun) == 2 + 5


def test_a_product_that_is_only_emulated_has_no_rate_and_is_never_made_large(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def emulated(device: torch.device, size: int) -> Callable[[], object]:
        made.append(size)
        return lambda: time.sleep(0.02)

    monkeypatch.setattr(ceilings_module, "_float8_product", emulated)
    assert measure_ceilings.__wrapped__(CPU).float8 is None
    assert made == [64]


def test_inputs_for_timing_have_the_samples_shapes_and_hold_numbers():
    sample = NORM.sample_inputs(5, CPU, torch.Generator())
    for made in (empty_inputs(NORM, 5), random_inputs(NORM, 5, CPU)):
        assert [(x.shape, x.stride(), x.dtype) for x in made] == [(x.shape, x.stride(), x.dtype) for x in sample]
    assert all(x.float().std() > 0.5 for x in random_inputs(NORM, 5, CPU))
    assert time_launcher(NORM.reference, rotating_inputs(NORM, 5, CPU), CPU, FAST).minimum > 0


def test_tensors_are_found_and_changed_wherever_they_are():
    value = (torch.ones(2), [torch.ones(3), 4], replace(ROW, time_us=None))
    assert [len(tensor) for tensor in tensors_in(value)] == [2, 3]
    changed = map_tensors(value, torch.zeros_like)
    assert changed[0].sum() + changed[1][0].sum() == 0
    assert changed[1][1] == 4
    assert changed[2] == value[2]


def test_correctness_finds_a_one_percent_error_and_passes_the_reference():
    cases = [(size, [ReferenceProvider(), Wrong(), Broken()]) for size in (1, 7)]
    good, bad, broken = check_contract(NORM, cases, CPU, seed=0)
    assert good.passed
    assert good.num_tokens == (1, 7)
    assert 0 < good.outputs[0].relative < 4e-3
    assert not bad.passed
    assert bad.problems[0].startswith("M = 1: y is off by 0.0")
    assert broken.problems == tuple(f"M = {size}: RuntimeError: no such kernel" for size in (1, 7))


def test_correctness_skips_who_cannot_serve():
    [row] = check_contract(NORM, [(1, [Refusing()])], CPU, seed=0)
    assert row.skipped == "not here"
    assert not row.passed


def test_poison_is_nan_in_every_float_type():
    poison_free_memory((torch.empty(4),), CPU)
    bytes_ = torch.full((8,), 0xFF, dtype=torch.uint8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert bytes_.view(dtype).float().isnan().all()


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "kernels.json"
    arguments = ["--model", "smollm2-135m", "--quantization", "unquantized", "--op", "rms_norm", "--m", "1,4"]
    arguments += ["--providers", "reference,torch", "--device", "cpu", "--rounds", "2", "--output", str(file)]
    result = CliRunner().invoke(build_app(), ["bench", "kernels", *arguments])
    assert result.exit_code == 0, result.output
    assert "of floor" in result.output
    report = json.loads(file.read_bytes())
    assert [(row["num_tokens"], row["provider"]) for row in report["rows"]] == [
        (1, "reference"), (1, "torch"), (4, "reference"), (4, "torch")
    ]  # fmt: skip
    assert report["rows"][0]["contract"] == "rms_norm(hidden_size=576, epsilon=1e-05, dtype=bfloat16)"
    assert report["ceilings"]["bandwidth"] > 0


@pytest.mark.parametrize("text", ["", "a", "0", "1,-2"])
def test_numbers_of_tokens_that_are_none_are_refused(text: str):
    result = CliRunner().invoke(build_app(), ["bench", "kernels", "--m", text])
    assert result.exit_code == 1
    assert "write positive integers" in result.output
