"""The rounds in which a server loses a process, rehearsed, and whether they would see what they look for."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import shared_memory
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


def test_a_server_and_a_replica_are_killed_under_load_and_no_bar_is_missed(faults: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "faults.json"
    arguments = ["--only", "front,replica", "--rounds", "1", "--model", "tiny", "--length", "40"]
    status = faults.main([*arguments, "--output", str(output)])
    front, replica = json.loads(output.read_text())["rounds"]
    assert (status, front["missed"], replica["missed"]) == (0, [], [])
    assert front["got"].keys() <= {"connection closed", "200"}
    assert (front["exit_status"], replica["exit_status"]) == (-9, 0)
    for row in (front, replica):
        assert sum(row["got"].values()) == 2 * len(faults.PROMPTS), "all that were under way, and one more each"
        assert row["process"] > 0
        assert row["settled_s"] > 0
        assert row["left"] == []
    table = faults.fault_lines([front, replica])
    assert [line.split(" | ")[4] for line in table[2:]] == ["1", "1"]
    assert len({line.count(" | ") for line in table if "---" not in line}) == 1


def test_texts_that_are_wrong_answers_that_are_not_allowed_and_clients_that_wait_miss_a_bar(
    faults: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fault_clients

    whole = "all of it"
    problem_of = fault_clients.problem_of
    assert problem_of("200", whole, whole) is None
    assert problem_of("error in stream", "all", whole) is None
    assert problem_of("200", "all", whole) == "'all' is not 'all of it'"
    assert problem_of("connection closed", "any", whole) == "'any' does not begin 'all of it'"

    monkeypatch.setattr(faults.Setting, "questions", lambda *_: [fault_clients.Question("go on", 9, whole)])
    monkeypatch.setattr(faults.time, "monotonic", lambda: 100.0)
    kinds = {kind.name: kind for kind in faults.KINDS}

    def missed(kind: str, *changes: dict[str, object], under_way: dict[int, float] | None = None) -> list[str]:
        with ExitStack() as ending:
            setting = faults.Setting(ending, None)
            setting._paths["tiny"] = str(tmp_path)
            trial = faults.Round(kinds[kind], setting, "tiny", 0)
        fine = fault_clients.Answer("200", streamed=True, began=9.0, ended=11.0, problem=None)
        answers = [replace(fine, **change) for change in ({}, *changes)]
        trial._judge(fault_clients.Load("", "", [], answers, under_way or {}), killed_at=10.0)
        found: list[str] = trial.row.missed
        return found

    assert missed("replica", {"outcome": "error in stream"}, {"streamed": False}) == []
    assert missed("replica", {"streamed": False, "outcome": "503"}) == ["a client that asked for one piece got 503"]
    assert missed("rank", {"streamed": False, "outcome": "503"}) == []
    assert missed("rank", {"outcome": "connection closed"}) == [
        "a client that asked for a stream got connection closed"
    ]
    assert missed("front", {"outcome": "connection closed"}) == []
    assert missed("front", {"outcome": "500"}) == ["a client that asked for a stream got 500"]
    assert missed("front", {"ended": 9.5, "outcome": "503"}) == ["503 before the kill"]
    assert missed("front", {"ended": 41.0}) == ["1 clients waited for more than 30 s"]
    assert missed("front", under_way={3: 9.0}) == ["1 clients waited for more than 30 s"]
    assert missed("front", {"problem": "wrong"}) == ["wrong"]


def test_processes_and_shared_memory_that_are_left_are_seen(faults: ModuleType) -> None:
    before = faults.SharedMemory.now()
    script = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as first:
        session = first.pid
        assert faults.until(lambda: len(faults.processes_of(session)) == 2, 10) is not None
        first.kill()
        first.wait()
        (left,) = faults.processes_of(session)
        left.kill()
        assert faults.until(lambda: not faults.processes_of(session), 10) is not None
    memory = shared_memory.SharedMemory(create=True, size=64)
    try:
        assert before.leaked() == [], "it is in use"
        memory.close()
        assert before.leaked() == [f"/dev/shm/{memory.name.removeprefix('/')}"]
    finally:
        memory.unlink()
    assert before.leaked() == []


def test_a_server_that_does_not_start_is_a_missed_bar_and_not_the_end(faults: ModuleType, tmp_path: Path) -> None:
    with ExitStack() as ending:
        setting = faults.Setting(ending, None)
        setting._paths["tiny"] = str(tmp_path / "nothing")
        setting._questions["tiny"] = []
        row = faults.one_round(faults.KINDS[0], setting, "tiny", 0)
    assert row.missed == [
        "EngineDeadError: the server ended with status 1 before it was ready; its own message stands above"
    ]
    with pytest.raises(SystemExit, match="there is no kind 'nobody'; there are front, "):
        faults.kinds_named(["front", "nobody"])
