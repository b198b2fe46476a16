"""``parhelion report`` as a user meets it; what it computes and shows is tested in ``tests/tuning``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from parhelion.cli.main import build_app
from parhelion.packs import location
from parhelion.packs.store import write_pack
from parhelion.tuning.report.data import Report
from tests.tuning.report_packs import RMS_NORM, pack, row
from tests.tuning.test_report_data import EXPECTED, RESULTS

runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One user's pack is installed, none is shipped, and pages are written here."""
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(location, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    made = pack(row(RMS_NORM, 1, 1.0, helion=2.0, torch=3.0), name="mine", binaries=())
    write_pack(made, {}, tmp_path / "home" / "packs" / "mine")
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(build_app(), ["report", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def sources(json: Path) -> list[str]:
    return [source.name for source in msgspec.json.decode(json.read_bytes(), type=Report).sources]


def test_without_options_it_reports_the_installed_packs(folder: Path):
    assert run("--json", "report.json") == (0, "written to report.html written to report.json")
    assert sources(folder / "report.json") == ["mine"]
    assert "rms_norm" in (folder / "report.html").read_text()


def test_packs_results_and_a_matrix_are_on_one_page(folder: Path):
    where = folder / "new" / "page.html"
    options = ["--pack", "mine", "--results", RESULTS, "--matrix", EXPECTED, "--output", where, "--json", "all.json"]
    assert run(*options)[0] == 0
    assert sources(folder / "all.json")[:2] == ["mine", "h100_engine.json"]
    assert "contracts built, from expected_matrix.json" in where.read_text()


def test_results_stand_beside_the_installed_packs_unless_these_are_off(folder: Path):
    assert run("--results", RESULTS, "--json", "all.json")[0] == 0
    assert sources(folder / "all.json")[:2] == ["mine", "h100_engine.json"]
    assert "What the packs cost and take" in (folder / "report.html").read_text()
    assert run("--results", RESULTS, "--pack", "off", "--json", "all.json")[0] == 0
    assert "mine" not in sources(folder / "all.json")


def test_an_installed_pack_that_cannot_be_read_is_left_out_in_words(folder: Path):
    (folder / "home" / "packs" / "broken.zip").write_bytes(b"PK")
    code, output = run("--json", "report.json")
    assert code == 0
    assert "left out: " in output
    assert "broken.zip is no readable zip" in output
    assert sources(folder / "report.json") == ["mine"]
    assert run("--pack", "broken")[0] == 1


def test_errors_name_the_thing_and_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert "known are mine" in run("--pack", "other")[1]
    assert "holds no result" in run("--results", "nowhere")[1]
    (folder / "taken").write_text("")
    code, output = run("--output", "taken/report.html")
    assert (code, "name another file" in output) == (1, True)
    monkeypatch.setenv("PARHELION_HOME", str(folder / "empty"))
    assert run() == (1, "error: there is nothing to report: no pack is installed; pass --pack, --results or --matrix")


def test_it_needs_neither_torch_nor_helion():
    script = (
        "import sys; from parhelion.tuning.report import collect, page; "
        "print(sorted({'torch', 'triton', 'helion'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"
