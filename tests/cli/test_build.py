"""``parhelion build`` as a user meets it; what it builds is tested in ``tests/tuning``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parhelion.cli.main import build_app
from parhelion.tuning import matrix
from parhelion.tuning.matrix import Build

runner = CliRunner()


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_matrix(contracts, targets, *, jobs, progress) -> list[Build]:
        assert jobs >= 1
        rows = [Build(c.name, c.key(), c.name, t.name, (1,)) for c in contracts for t in targets]
        return [replace(row, reason="no [type]", instead="torch") if row.op == "rms_norm" else row for row in rows]

    monkeypatch.setattr(matrix, "build_matrix", build_matrix)
    monkeypatch.setenv("COLUMNS", "200")


def test_without_check_it_says_what_it_can_do():
    result = runner.invoke(build_app(), ["build"])
    assert result.exit_code == 1
    assert "pass --check" in result.output


def test_the_table_the_page_and_the_json_say_what_is_not_built(tmp_path: Path):
    page = tmp_path / "page.md"
    arguments = ["build", "--check", "--model", "qwen3-8b", "--target", "sm_90", "--quick"]
    result = runner.invoke(build_app(), [*arguments, "--output", str(page)])
    assert result.exit_code == 0, result.output
    assert "rms_norm on sm_90: no [type]; torch serves" in result.output
    assert "parhelion build --check --model qwen3-8b --target sm_90 --quick --output" in page.read_text()
    rows = json.loads(runner.invoke(build_app(), [*arguments, "--json"]).stdout)
    assert {row["target"] for row in rows} == {"sm_90"}
    assert [row["reason"] for row in rows if row["op"] == "rms_norm"] == ["no [type]"]


def test_a_pair_that_stops_building_fails_the_command(tmp_path: Path):
    expected = tmp_path / "expected.json"
    arguments = ["build", "--check", "--model", "qwen3-8b", "--target", "sm_90", "--quick"]
    assert runner.invoke(build_app(), [*arguments, "--write-expected", str(expected)]).exit_code == 0
    assert runner.invoke(build_app(), [*arguments, "--expect", str(expected)]).exit_code == 0
    pairs = json.loads(expected.read_bytes())
    [key] = [key for key in pairs if key.startswith("rms_norm(")]
    expected.write_text(json.dumps(pairs | {key: ["sm_90"]}))
    result = runner.invoke(build_app(), [*arguments, "--expect", str(expected)])
    assert result.exit_code == 1
    assert "was built for sm_90 and is not now: no [type]" in result.output


@pytest.mark.parametrize("option", [["--model", "gpt-2"], ["--target", "sm_70"], ["--quantization", "int3"]])
def test_unknown_names_are_refused(option: list[str]):
    result = runner.invoke(build_app(), ["build", "--check", *option])
    assert result.exit_code == 1
    assert option[1] in result.output
