"""The benchmark of two ranks, rehearsed on a CPU: every piece writes rows, and one that hangs costs its own time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import h100x2_tp

    return h100x2_tp


def run_on_cpu(output: Path, *options: str) -> tuple[int, str]:
    """Exit status and what was said; the result is in ``output``."""
    command = [sys.executable, str(BENCHMARKS / "h100x2_tp.py"), "--device", "cpu", "--model", "tiny"]
    # The interpreter of tile programs, which other tests use, exchanges nothing between processes.
    environment = {name: value for name, value in os.environ.items() if name != "HELION_INTERPRET"}
    command += [*options, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("tp") / "result.json"
    status, said = run_on_cpu(output, "--only", "logits,speed2,speed1,collectives,draws,silent", "--batches", "1")
    assert status == 0, said
    assert "TPOT" in said
    return json.loads(output.read_text())


def rows(content: Any, what: str) -> list[Any]:
    return [row for piece in content["pieces"].values() for row in piece["rows"] if row["what"] == what]


def test_every_piece_passes_and_says_what_it_measured(rehearsed: Any) -> None:
    assert {"device", "versions", "command", "measured_at", "environment"} <= rehearsed.keys()
    assert rehearsed["command"].endswith("--only logits,speed2,speed1,collectives,draws,silent --batches 1")
    assert all(piece["passed"] and piece["problem"] is None for piece in rehearsed["pieces"].values())
    assert [row["dtype"] for row in rows(rehearsed, "logits")] == ["float32", "bfloat16", "bfloat16"]
    assert [row["tp"] for row in rows(rehearsed, "speed")] == [2, 1]
    assert all(row["tpot_ms"] > 0 and len(row["prefill_ms_all"]) == 2 for row in rows(rehearsed, "speed"))
    assert [row["tp"] for row in rows(rehearsed, "engine")] == [2, 1]
    assert len(rows(rehearsed, "without collectives")) == 1
    assert rows(rehearsed, "links")[0]["all_reduce_bytes_per_s"] > 0
    for what in ("all_reduce", "all_reduce_rms_norm"):
        timed = [row for row in rows(rehearsed, what) if row["time_us"] is not None]
        assert {row["m"] for row in timed} == {1, 3}
        assert all(row["provider"] == "torch" and row["rel_err"] < 0.01 for row in timed)
    assert all(row["problem"] for row in rows(rehearsed, "all_reduce_rms_norm") if row["provider"] == "helion")
    drawn = rows(rehearsed, "draws")
    assert [row["way"] for row in drawn] == ["gathered", "among few", "among all", "search", "rows shared out"]
    assert all(row["drawn_us"] > 0 and row["differing"] == 0 for row in drawn)


def test_both_numbers_of_ranks_stand_side_by_side_with_what_was_planned(rehearsed: Any) -> None:
    found = {row["tp"]: row for row in rehearsed["beside"] if row["what"] == "beside"}
    times = {row["tp"]: row["tpot_ms"] for row in rows(rehearsed, "speed")}
    assert found[2]["tpot_speedup"] == pytest.approx(times[1] / times[2])
    assert found[2]["collectives_of_tpot"] < 1
    assert "collectives_of_tpot" not in found[1]
    for tp in (1, 2):
        assert found[tp]["tpot_off"] == pytest.approx(found[tp]["tpot_predicted_ms"] / times[tp] - 1)
    assert found[1]["tpot_links_ms"] == 0 < found[2]["tpot_links_ms"]
    [told] = [row for row in rehearsed["beside"] if row["what"] == "logprobs beside"]
    # Each rank scales its part of a token by itself.
    assert 0 < told["relative_error"] < 0.5


def test_the_tables_are_made_of_the_result(script: ModuleType, rehearsed: Any) -> None:
    import tp_tables

    content = json.dumps(rehearsed).encode()
    speed, sums = tp_tables.tp_speed_table(content).splitlines(), tp_tables.tp_sums_table(content).splitlines()
    assert [line.split(" | ")[2] for line in speed[2:4]] == ["1", "2"]
    assert speed[3].count("%") == 2
    assert "`all_reduce_rms_norm` and FP8, torch" in sums[0]
    assert [line.split(" | ")[0] for line in sums[2:4]] == ["| 1", "| 3"]
    for lines in (speed, sums):
        assert len({line.count(" | ") for line in lines[:4] if "---" not in line}) == 1
        assert "torch " in lines[-1]


def test_a_rank_that_is_struck_is_named_with_the_cause_and_nothing_of_it_is_left(
    script: ModuleType, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    # Those that are killed or stopped end as in tests/e2e; this is the slowest to be noticed.
    _, said = run_on_cpu(output, "--only", "hung")
    [row] = rows(json.loads(output.read_text()), "hung")
    assert "no step has ended for 3 s" in row["said"], said
    assert f"rank 1 on {os.uname().nodename} (process " in row["said"]
    assert row["rank_gone_s"] is not None
    assert (row["left"], row["bytes_more_than_before"]) == ([], [])
    # How long it took is this machine's matter.
    assert row["passed"] == (row["noticed_s"] <= row["within_s"])


def test_a_piece_that_hangs_is_ended_with_its_ranks_and_what_it_said_is_kept(
    script: ModuleType, tmp_path: Path
) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        "import subprocess, sys, time, pathlib\n"
        "rows = pathlib.Path(sys.argv[sys.argv.index('--rows') + 1])\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        'rows.write_text(\'{"what": "speed", "passed": true, "pid": %d}\\n{"what\' % child.pid)\n'
        "time.sleep(60)\n"
    )
    import pieces

    options = script.parse(["--device", "cpu", "--output", str(tmp_path / "result.json")])
    result = pieces.Result("hanging", options)
    began = time.monotonic()
    pieces.run_apart(hanging, "speed2", [], 5.0, result)
    assert time.monotonic() - began < 50
    piece = json.loads((tmp_path / "result.json").read_text())["pieces"]["speed2"]
    assert (piece["passed"], piece["problem"]) == (False, "ended after 5 s")
    [row] = piece["rows"]
    child = psutil.Process(row["pid"]) if psutil.pid_exists(row["pid"]) else None
    assert child is None or child.status() == psutil.STATUS_ZOMBIE


def test_no_piece_begins_when_the_time_is_over(script: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    assert script.main(["--device", "cpu", "--model", "tiny", "--seconds", "5", "--output", str(output)]) == 1
    pieces = json.loads(output.read_text())["pieces"]
    assert list(pieces) == list(script.PIECES)
    assert {piece["problem"] for piece in pieces.values()} == {"no time was left"}
