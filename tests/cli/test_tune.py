"""``parhelion tune`` as a user meets it; what it finds is tested in ``tests/tuning``."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from parhelion.cli import tune_view
from parhelion.cli.main import build_app
from parhelion.cli.tune import seconds, slug
from parhelion.cli.tune_view import LiveTable, progress_line, progress_table
from parhelion.errors import ConfigError
from parhelion.ops.argmax import Argmax
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.packs.store import read_pack
from parhelion.platform import device as devices
from parhelion.platform.measure import summarize
from parhelion.tuning import compile_pool, gpu_worker, helion_search, plan
from parhelion.tuning import tune as tune_command
from parhelion.tuning.helion_search import FullEffort
from parhelion.tuning.jobs import Outcome
from parhelion.tuning.plan import PlannedRow
from parhelion.tuning.row_state import RowState
from parhelion.tuning.tune import TuneProgress
from tests.models.eagle3_heads import ORIGINAL_JSON, write_head
from tests.packs import sample
from tests.tuning.tuner_fakes import Clock, FakeCompiler, FakeTimer, planted

BEST = GemmConfig(16, 64, 128, swap_ab=True, split_k=2, num_warps=4, num_stages=4)
ARGUMENTS = ["tune", "qwen3-0.6b", "--quantization", "fp8_per_token", "--ops", "scaled_mm,argmax", "--m", "1,16"]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), [*arguments])


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTimer:
    """A GPU and a compiler that are none, and a home of one's own."""

    class Gpu(FakeTimer):
        fingerprint = sample.H100

        def __init__(self) -> None:
            super().__init__(Clock(), planted(BEST))

        def __enter__(self) -> Gpu:
            return self

        def __exit__(self, *unused: object) -> None: ...

        def tune_step(self, job: Any) -> str:
            return "there is no step here"

    class Pool(FakeCompiler):
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *unused: object) -> None: ...

    gpu = Gpu()
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(gpu_worker, "GpuTimer", lambda device: gpu)
    monkeypatch.setattr(compile_pool, "CompilePool", lambda target, num_processors: Pool())
    monkeypatch.setattr(plan, "why_not_on", lambda device: _torch_alone)
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    return gpu


def _torch_alone(provider: Any, contract: Any) -> str | None:
    return None if provider.name == "torch" else "not here"


def test_a_pack_is_made_and_lies_where_packs_are_looked_for(timer: FakeTimer, tmp_path: Path):
    result = invoke(*ARGUMENTS, "--effort", "quick")
    assert result.exit_code == 0, result.output
    path = tmp_path / "packs" / "nvidia-h100-80gb-hbm3"
    assert f"written to {path}" in result.output
    pack = read_pack(path).pack
    assert {row.op for row in pack.rows} == {"scaled_mm", "argmax"}
    assert {row.num_tokens for row in pack.rows} == {1, 16}
    assert [(model.name, model.quantization) for model in pack.models] == [("qwen3-0.6b", "fp8_per_token")]
    assert pack.command.startswith("parhelion tune qwen3-0.6b --quantization fp8_per_token --budget 10m")
    # Not a terminal: lines.
    assert re.search(r"^first pass: 0 of 10 rows measured; [0-9]+ s left$", result.output, re.MULTILINE)
    before = len(timer.trials)
    again = json.loads(invoke(*ARGUMENTS, "--effort", "quick", "--json").stdout)
    assert again["num_rows"] == 10
    assert len(timer.trials) == before


def test_several_numbers_of_ranks_go_into_one_pack(timer: FakeTimer, tmp_path: Path):
    result = invoke(*ARGUMENTS, "--effort", "quick", "--tp", "2,1")
    assert result.exit_code == 0, result.output
    assert "all_reduce needs all 2 ranks, so it is not tuned: helion serves it" not in result.output
    assert "all_reduce needs all 2 ranks, so it is not tuned: torch serves it" in result.output
    pack = read_pack(tmp_path / "packs" / "nvidia-h100-80gb-hbm3").pack
    assert pack.command.endswith("--m 1,16 --tp 2,1")
    assert [model.title for model in pack.models] == ["qwen3-0.6b fp8_per_token", "qwen3-0.6b fp8_per_token tp 2"]
    alone, shared = (set(model.contracts) for model in pack.models)
    assert {row.contract for row in pack.rows} == alone | shared
    # The qkv, out, gate_up and down of one rank and of two, and the likeliest of all, of a part, and of the parts.
    assert (len(alone), len(shared), len(alone | shared)) == (5, 7, 11)
    assert "2 rows stay as the pack has them of fewer ranks" in result.output


def test_a_quantized_head_is_tuned_beside_what_is_there(timer: FakeTimer, tmp_path: Path):
    assert invoke(*ARGUMENTS, "--effort", "quick").exit_code == 0
    result = invoke(*ARGUMENTS, "--effort", "quick", "--lm-head-quantization", "fp8")
    assert result.exit_code == 0, result.output
    assert "10 rows stay as the pack has them of fewer ranks, or of a head that is not quantized" in result.output
    pack = read_pack(tmp_path / "packs" / "nvidia-h100-80gb-hbm3").pack
    assert "--quantization fp8_per_token --lm-head-quantization fp8 --budget" in pack.command
    assert [model.lm_head_quantization for model in pack.models] == [None, "fp8"]
    (new,) = set(pack.models[1].contracts) - set(pack.models[0].contracts)
    assert new == ScaledMm(1024, 151936).key()
    dry = invoke(*ARGUMENTS, "--dry-run", "--lm-head-quantization", "fp8")
    assert "qwen3-0.6b (fp8_per_token, lm_head fp8)" in dry.output


def test_a_draft_head_is_tuned_into_the_pack_of_its_target(timer: FakeTimer, tmp_path: Path):
    assert invoke(*ARGUMENTS, "--effort", "quick").exit_code == 0
    head = write_head(tmp_path / "mine", ORIGINAL_JSON)
    arguments = ("tune", str(head), "--ops", "rms_norm,argmax", "--m", "1,512", "--effort", "quick", "--tp", "1,3")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    pack = read_pack(tmp_path / "packs" / "nvidia-h100-80gb-hbm3").pack
    # Three ranks cannot divide it, so each has all of it.
    assert [model.title for model in pack.models] == ["qwen3-0.6b fp8_per_token", "mine unquantized"]
    assert pack.command.startswith("parhelion tune mine --quantization unquantized --budget 10m")
    own = {(row.contract, row.num_tokens) for row in pack.rows if row.contract in pack.models[1].contracts}
    norm, argmax = RmsNorm(32, 1e-5, torch.bfloat16).key(), Argmax(20, torch.bfloat16).key()
    assert own == {(norm, 1), (norm, 512), (argmax, 1)}
    dry = invoke(*arguments, "--dry-run")
    assert "3 rows to tune for mine (unquantized) on sm_90, effort quick" in dry.output


def test_helions_search_runs_in_its_process_on_the_device_and_what_it_found_is_timed(
    timer: FakeTimer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A tile that no candidate and no neighbour of one has.
    odd = GemmConfig(8, 16, 256, swap_ab=True, num_warps=1, num_stages=4, group_m=16)
    found = msgspec.json.encode(FullEffort(summarize([1.0]), "whole, swapped: ...", 300.0, gemm=odd)).decode()
    asked = tmp_path / "asked"
    script = tmp_path / "search.py"
    script.write_text(
        "import os, sys\n"
        "seen = [*sys.argv[1:-1], os.environ['CUDA_VISIBLE_DEVICES'], os.environ['HELION_AUTOTUNE_EFFORT']]\n"
        f"print(*seen, sep='|', file=open({str(asked)!r}, 'a'))\n"
        f"open(sys.argv[-1], 'w').write({found!r})\n"
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    search = functools.partial(helion_search.full_effort_search, command=(sys.executable, str(script)))
    monkeypatch.setattr(helion_search, "full_effort_search", search)
    result = invoke(*ARGUMENTS, "--effort", "quick", "--helion-search", "5m", "--budget", "1h")
    assert result.exit_code == 0, result.output
    assert "Helion's search was asked for 4 products, 300 s each" in result.output
    calls = [line.split("|") for line in asked.read_text().splitlines()]
    # The largest M of those that share programs, and the one GPU that the process sees.
    assert {tuple(call[1:6]) for call in calls} == {("16", "--device", "cuda", "--seconds", "300.0")}
    assert {tuple(call[-2:]) for call in calls} == {("0", "full")}
    products = {
        row.contract
        for row in read_pack(tmp_path / "packs" / "nvidia-h100-80gb-hbm3").pack.rows
        if row.op == "scaled_mm"
    }
    assert {call[0] for call in calls} == products
    assert {(contract, size) for contract, size, config in timer.configs() if config == odd} >= {
        (contract, 16) for contract in products
    }


def test_interrupted_it_writes_what_it_knows_and_says_how_to_go_on(timer: FakeTimer, tmp_path: Path):
    timer.interrupt_after = 9
    output = tmp_path / "cut.zip"
    result = invoke(*ARGUMENTS, "--output", str(output))
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.output
    assert 0 < len(read_pack(output).pack.rows) < 10


def test_where_nothing_works_it_fails(timer: FakeTimer, tmp_path: Path):
    timer.problem = lambda provider, config, check: "no kernel image"
    result = invoke(*ARGUMENTS)
    assert result.exit_code == 1
    assert "no kernel image" in result.output
    assert "nothing was tuned" in result.output


def test_a_dry_run_needs_no_gpu_and_says_what_it_would_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke("tune", "qwen3-8b", "--quantization", "fp8_per_token", "--dry-run", "--target", "gfx942")
    assert result.exit_code == 0, result.output
    assert "rows to tune for qwen3-8b (fp8_per_token) on gfx942, effort normal" in result.output
    assert "scaled_mm(in_features=4096" in result.output
    without = invoke("tune", "qwen3-8b", "--quantization", "fp8_per_token", "--dry-run", "--target", "sm_80")
    assert "weight_only_mm(in_features=4096" in without.output
    assert "an estimate: " in result.output
    assert "inductor" in result.output
    assert "Helion" not in result.output
    asked = invoke(*ARGUMENTS, "--dry-run", "--helion-search", "5m", "--budget", "1h")
    assert "Helion's own search takes 300 s for each product that it is asked for" in asked.output
    assert "at most 6 in this budget" in asked.output
    found = json.loads(invoke(*ARGUMENTS, "--dry-run", "--json").stdout)
    assert found["num_rows"] == 10
    assert {each["op"] for each in found["ops"]} == {"scaled_mm", "argmax"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-2"], "the dimensions of 'gpt-2' are not listed"),
        (["qwen3-8b", "--budget", "soon"], "--budget is 'soon'; write a time such as 90s, 10m or 1h30m"),
        (["qwen3-8b-eagle3", "--quantization", "fp8_per_token"], "never quantized: leave --quantization out"),
        (["qwen3-8b", "--effort", "some"], "the efforts are quick, normal, full"),
        (["qwen3-8b", "--tp", "3"], "tp is 3, but 32 heads are no multiple of tp 3; tp may be 1, 2, 4, 8"),
        (["qwen3-8b", "--target", "sm_90"], "--target belongs to --dry-run"),
        (["qwen3-8b", "--dry-run", "--target", "sm_1"], "there is no target 'sm_1'"),
        (["qwen3-8b", "--dry-run", "--ops", "conv"], "there is no op 'conv'"),
        (["qwen3-8b", "--dry-run", "--m", "x"], "--m is 'x'"),
        (["qwen3-8b", "--helion-search", "5m"], "which leaves no time for one: pass --budget 16m or more"),
        (["qwen3-8b", "--helion-search", "5m", "--budget", "20m", "--tp", "1,2"], "pass --budget 32m or more"),
        (["qwen3-8b", "--device", "cpu"], "tuning measures on a GPU, and --device is cpu: pass --dry-run"),
        (["qwen3-8b"], "tuning measures on a GPU, and torch sees no cuda here: pass --dry-run"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke("tune", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("1.5h", 5400.0)]
)
def test_budgets(text: str, expected: float):
    assert seconds("--budget", text) == expected


@pytest.mark.parametrize("text", ["", "0", "m", "10x", "-5m", "10m5x"])
def test_budgets_that_are_none(text: str):
    with pytest.raises(ConfigError, match="--budget"):
        seconds("--budget", text)


def test_a_devices_name_becomes_a_packs():
    assert slug("NVIDIA RTX PRO 6000 Blackwell (Server)") == "nvidia-rtx-pro-6000-blackwell-server"


def test_progress_shows_rows_beside_their_floors():
    row = RowState(PlannedRow(RmsNorm(4096), 16, 2), 1.5, None)
    unknown = TuneProgress("first pass", 0, 4, row, (row,), 61.0)
    assert (
        progress_line(unknown) == "first pass: 0 of 4 rows measured; rms_norm at M = 16: - us of 1.50 by -; 61 s left"
    )
    row.met(("torch", None), Outcome("torch", None, summarize([2.0])), 0.1, is_final=True)
    now = TuneProgress("search", 4, 4, row, (row,), 5.0)
    assert "rms_norm at M = 16: 2.00 us of 1.50 by torch; 5 s left" in progress_line(now)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(progress_table(now))
    text = console.export_text()
    assert "75%" in text
    assert "rms_norm(hidden_size=4096" in text


def test_the_time_left_goes_on_while_nothing_else_does(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(tune_view.time, "monotonic", lambda: now)
    table = LiveTable()
    console = Console(width=160, file=io.StringIO())

    def drawn() -> str:
        with console.capture() as capture:
            console.print(table)
        return capture.get()

    assert drawn().strip() == ""
    row = RowState(PlannedRow(RmsNorm(4096), 16, 1), 1.5, None)
    table.show(TuneProgress("Helion's search", 4, 4, row, (row,), 300.0))
    assert "; 300 s left" in drawn()
    now += 240.0
    assert "; 60 s left" in drawn()
    now += 100.0
    assert "; 0 s left" in drawn()


def test_starting_takes_its_part_of_the_budget(timer: FakeTimer, monkeypatch: pytest.MonkeyPatch):
    budgets: list[float] = []
    now = 1000.0

    def tune_each(plans: Any, *arguments: Any, **others: Any) -> Any:
        budgets.append(arguments[4].budget_s)
        raise ConfigError("that was enough")

    def started(device: torch.device) -> FakeTimer:
        nonlocal now
        now += 25.0
        return timer

    monkeypatch.setattr(gpu_worker, "GpuTimer", started)
    monkeypatch.setattr(tune_command, "tune_each", tune_each)
    monkeypatch.setattr(tune_view.time, "monotonic", lambda: now)
    assert "that was enough" in invoke(*ARGUMENTS).output
    assert budgets == [575.0]
