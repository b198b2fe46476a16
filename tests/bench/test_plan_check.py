"""The planner beside measurements: which runs a file has, and that the committed comparison is today's planner's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plan_check

    return plan_check


def test_the_committed_comparison_is_what_the_planner_says_of_the_committed_measurements(script: ModuleType) -> None:
    committed = msgspec.json.decode((script.RESULTS / "plan_check.json").read_bytes(), type=script.PlanCheck)
    # Whoever changes the planner, a shipped pack or a measurement runs it again.
    again = script.check([script.RESULTS / file.measured_in for file in committed.files])
    assert [replace(file, runs=()) for file in committed.files] == [replace(file, runs=()) for file in again.files]
    for told, found in zip(committed.files, again.files, strict=True):
        assert len(told.runs) == len(found.runs) > 0
        for one, other in zip(told.runs, found.runs, strict=True):
            assert (one.model, one.pack, one.tp, one.batch) == (other.model, other.pack, other.tp, other.batch)
            for time, expected in ((one.tpot, other.tpot), (one.prefill, other.prefill)):
                assert msgspec.to_builtins(time) == pytest.approx(msgspec.to_builtins(expected), rel=1e-6)
                assert time.off == pytest.approx(time.predicted_ms / time.measured_ms - 1)


CIRCUMSTANCES = {"measured_at": "2026-01-01T", "command": "run", "packages": [{"name": "torch", "version": "2"}]}
TIMES = {"model": "qwen3-8b", "batch": 4, "tpot_ms": 3.0, "prefill_ms": 9.0}


def of_engine() -> dict[str, Any]:
    rows = [TIMES, TIMES | {"pack": "h200"}, {"model": "qwen3-8b", "cold_start_s": 1.0}]
    return {"parts": {"device": "NVIDIA H200", "circumstances": CIRCUMSTANCES, "speed": rows}}


def of_ranks() -> dict[str, Any]:
    row = TIMES | {"what": "speed", "tp": 2, "pack": "h200"}
    pieces = {"speed2": {"rows": [row, {"what": "engine", "tp": 2}]}, "killed": {"rows": []}}
    return {"device": "NVIDIA H200", "circumstances": CIRCUMSTANCES, "pieces": pieces}


def of_comparison() -> dict[str, Any]:
    row = TIMES | {"tpot_ms": {"parhelion": 3.0, "vllm": 4.0}, "prefill_ms": {"parhelion": 9.0, "vllm": 8.0}}
    engines = [
        {"model": "qwen3-8b", "engine": name, "facts": {"pack": pack}}
        for name, pack in (("parhelion", "h200"), ("vllm", ""))
    ]
    versions = {"parhelion": {"torch": "2"}, "vllm": {"torch": "3"}}
    about = {"device": "NVIDIA H200", "measured_at": "2026-01-01T", "command": "run", "versions": versions}
    return about | {"settings": {"max_num_batched_tokens": 8192}, "engines": engines, "rows": [row]}


def test_every_benchmark_says_its_runs_in_a_form_of_its_own(script: ModuleType) -> None:
    run = script.Run("qwen3-8b", "h200", 1, 4, 3.0, 9.0)
    for content, runs in (
        (of_engine(), (replace(run, pack=None), run)),
        (of_ranks(), (replace(run, tp=2),)),
        (of_comparison(), (replace(run, step_tokens=8192),)),
    ):
        assert script.measured_in(content) == script.Measured("NVIDIA H200", "2026-01-01T", "run", {"torch": "2"}, runs)


def test_a_line_of_the_table_stands_for_a_run(script: ModuleType) -> None:
    time = script.Prediction(2.2, 2.0, 0.1, 1.0, 0.0, 0.0, 0.0, 0.0)
    run = script.CheckedRun("qwen3-8b", None, 2, 4, time, replace(time, off=-0.2))
    file = script.CheckedFile("a.json", "run", "2026-01-01T", "NVIDIA H200", {"torch": "2"}, "h200, then", (run,))
    *_, line, blank, note = script.plan_check_table(msgspec.json.encode(script.PlanCheck("check", (file,)))).split("\n")
    assert line == "| H200, 2026-01-01 | qwen3-8b | untuned | 2 | 4 | 2.20 | 2.00 | +10% | 2.2 | 2.0 | -20% |"
    assert blank == ""
    assert note.startswith("1 of 2 within 15%.")
    assert "`a.json` (NVIDIA H200, torch 2)" in note
