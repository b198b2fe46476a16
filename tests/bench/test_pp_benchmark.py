"""The benchmark of two stages: what stands beside what, and the table that is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import h200x2_pp

    return h200x2_pp


def speed_row(script: ModuleType, whole_ms: list[float], **stages: int) -> dict[str, Any]:
    times = {"prefill_ms": 8.0, "prefill_ms_all": [7.0, 8.0], "tpot_ms": 3.0, "tpot_ms_all": [3.0, 4.0]}
    row = {"what": "speed", "model": "tiny", "batch": 2, **stages, **times, "whole_ms_all": whole_ms, "passed": True}
    found: dict[str, Any] = script.with_totals(row, script.SpeedOptions("tiny", "cpu", "off", (2,), 16, 4, 3))
    return found


def test_two_stages_stand_beside_one_gpu(script: ModuleType) -> None:
    import pp_tables

    rows = [speed_row(script, [20.0, 40.0, 10.0], pp=2), speed_row(script, [40.0, 50.0, 80.0])]
    assert rows[0]["tokens_per_s_all"] == [2000.0, 1000.0, 4000.0]
    [beside] = script.beside(rows)
    assert (beside["batch"], beside["throughput_gain"], beside["tpot_speedup"]) == (2, 2000 / 800, 1.0)
    content = {"pieces": {"speed": {"rows": rows}}, "beside": [beside]}
    about = {"device": "GPU", "num_gpus": 2, "versions": {"torch": "2"}, "measured_at": "2026-01-01T", "command": "run"}
    *_, one, two, blank, note = pp_tables.pp_table(json.dumps(content | about).encode()).splitlines()
    assert one == "| tiny | 2 | 1 | 8.0 (7.0 to 8.0) | 3.00 (3.00 to 4.00) | 800 (500 to 1,000) |  |"
    assert two.endswith("| 2,000 (1,000 to 4,000) | 2.50x |")
    assert (blank, note.split("; ")[-1]) == ("", "`run`.")


def test_no_piece_begins_when_the_time_is_over(script: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    assert script.main(["--device", "cpu", "--model", "tiny", "--seconds", "5", "--output", str(output)]) == 1
    content = json.loads(output.read_text())
    assert {"device", "versions", "command", "measured_at", "environment"} <= content.keys()
    assert (content["benchmark"], list(content["pieces"])) == ("h200x2_pp", list(script.PIECES))
    assert {piece["problem"] for piece in content["pieces"].values()} == {"no time was left"}
