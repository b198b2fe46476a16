"""Going on with the comparison that a file holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parhelion.bench.compare.earlier import Earlier
from parhelion.bench.compare.results import Comparison, EngineRow, OnlineRow, Recorder, Sample, make_row
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.errors import ConfigError

SETTINGS = OfflineSettings(batches=(2,), input_length=8, output_length=11, rounds=1)


def comparison(command: str, **changes: object) -> Comparison:
    empty = Comparison("GPU", 1e12, {}, command, "noon", SETTINGS, OnlineSettings(), "all", "nowhere", notes=["own"])
    return replace(empty, **changes)


def row(model: str, tpot_ms: float):
    samples = {name: [Sample(0.1, 0.1 + 0.01 * tpot_ms, 2, 22, 7)] for name in ("parhelion", "vllm")}
    return make_row(model, 2, SETTINGS, None, samples)


def servers(model: str) -> OnlineRow:
    return OnlineRow(model, "closed", 4, None, {}, {"vllm": "did not start"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of two models and one of them as a server."""
    path = tmp_path / "compare.json"
    recorder = Recorder(comparison("first", notes=["own", "on a shared host"]), path)
    for model, tpot_ms in (("small", 1.0), ("large", 4.0)):
        recorder.put_row(row(model, tpot_ms))
        recorder.put_engine(EngineRow(model, "vllm", ready_s=tpot_ms))
    recorder.put_online(servers("small"))
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_what_is_not_measured_again_stays_from_the_first_point_on(path: Path) -> None:
    later = comparison("second", measured_at="evening")
    earlier = Earlier(path, later, offline=True, online=False)
    recorder = Recorder(later, path)
    recorder.put_row(row("large", 3.0))
    for _ in range(2):
        found = read(path)
        assert [(each["model"], each["tpot_ms"]["vllm"]) for each in found["rows"]] == [
            ("small", pytest.approx(1.0)),
            ("large", pytest.approx(3.0)),
        ]
        assert len(found["online"]) == 1
        # Each point keeps the date of its run.
        assert [each["measured_at"] for each in found["rows"]] == ["noon", None]
        assert found["online"][0]["measured_at"] == "noon"
        assert found["command"] == "first; then second"
        assert found["notes"] == ["own", "on a shared host", "What was not measured again is of noon or before."]
        earlier.finish(later)
        recorder.write()


def test_nothing_is_said_of_what_was_measured_again_altogether(path: Path) -> None:
    later = comparison("second")
    earlier = Earlier(path, later, offline=True, online=True)
    recorder = Recorder(later, path)
    for model in ("small", "large"):
        recorder.put_row(row(model, 2.0))
    recorder.put_online(servers("small"))
    later.notes.append("found on the way")
    earlier.finish(later)
    assert later.command == "second"
    assert later.notes == ["own", "found on the way"]
    assert len(later.rows) == 2


def test_servers_join_those_of_their_own_run_alone(path: Path) -> None:
    later = comparison("second")
    Earlier(path, later, offline=True, online=True)
    recorder = Recorder(later, path)
    recorder.put_online(replace(servers("small"), errors={"parhelion": "was stopped"}))
    assert later.online[0].errors == {"parhelion": "was stopped"}
    recorder.put_online(replace(servers("small"), errors={"vllm": "was stopped as well"}))
    assert later.online[0].errors == {"parhelion": "was stopped", "vllm": "was stopped as well"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "another GPU"}, "of GPU, and this is another GPU"),
        ({"settings": replace(SETTINGS, output_length=21)}, "output_length 11, not 21"),
        ({"online_settings": OnlineSettings(num_requests=7)}, "num_requests 200, not 7"),
    ],
)
def test_points_that_do_not_belong_together_are_kept_apart(path: Path, changes: dict, why: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=why):
        Earlier(path, comparison("second", **changes), offline=True, online=True)
    assert path.read_bytes() == before


def test_settings_of_what_is_not_measured_are_the_earlier_ones(path: Path) -> None:
    later = comparison("second", settings=replace(SETTINGS, timeout_s=1.0), online_settings=OnlineSettings(clients=99))
    Earlier(path, later, offline=True, online=False)
    assert later.online_settings == OnlineSettings()
    assert later.settings.timeout_s == 1.0


def test_a_file_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"milk": 2}')
    with pytest.raises(ConfigError, match=r"notes\.json exists and holds no comparison"):
        Earlier(path, comparison("second"), offline=True, online=True)
