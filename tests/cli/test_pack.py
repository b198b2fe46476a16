"""``parhelion pack`` as a user meets it; what it does with packs is tested in ``tests/packs``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parhelion.cli import pack as pack_commands
from parhelion.cli.main import build_app
from parhelion.ops.source_hash import source_hashes
from parhelion.packs import location
from parhelion.packs.format import BlockTime
from parhelion.packs.store import read_pack, write_pack
from tests.packs.sample import FILES, GEMM, H200, HASHES, RMS_NORM, candidate, pack, row

runner = CliRunner()
DOCUMENTS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCUMENTS / "packs.md").read_text()
SHIPPED = location.SHIPPED


@pytest.fixture(autouse=True)
def _packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipped pack, and two of the user's in the current folder."""
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setattr(location, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(pack_commands, "_source_hashes", lambda: HASHES)
    monkeypatch.chdir(tmp_path)
    write_pack(pack(), FILES, tmp_path / "shipped" / "h100-sxm.zip")
    write_pack(pack(name="old"), FILES, tmp_path / "old.zip")
    write_pack(pack(name="new", rows=(row(16, best=candidate("torch", 2.0)),)), FILES, tmp_path / "new.zip")
    write_pack(pack(name="retuned"), FILES, tmp_path / "retuned.zip")


def run(*arguments: str, status: int = 0) -> str:
    """Both streams of a command."""
    result = runner.invoke(build_app(), ["pack", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def as_json(*arguments: str, status: int = 0):
    result = runner.invoke(build_app(), ["pack", *arguments, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", ["ls", "show", "diff", "verify", "merge"])
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    output = run(command, "--help")
    assert f"Example: parhelion pack {command}" in output
    assert "--json" in output


def documented() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", ["packs", "build", "tuning"])
def test_packs_that_a_document_names_come_with_the_package(name: str) -> None:
    text = (DOCUMENTS / f"{name}.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    named = set(re.findall(r"(?<![\w/-])[hb]\d00[\w-]*(?!\.zip)\b", "\n".join(blocks)))
    assert named
    assert named <= {path.stem for path in SHIPPED.glob("*.zip")}


@pytest.mark.parametrize("line", documented())
def test_commands_of_the_document_work(line: str, tmp_path: Path) -> None:
    write_pack(pack(name="h100"), FILES, tmp_path / "shipped" / "h100.zip")
    words = shlex.split(line)
    assert words[:2] == ["parhelion", "pack"]
    run(*words[2:])


def test_ls_shows_each_pack_and_says_which_cannot_be_read(tmp_path: Path) -> None:
    write_pack(pack(name="mine", fingerprint=H200), FILES, tmp_path / "home" / "packs" / "mine")
    (tmp_path / "home" / "packs" / "broken.zip").write_bytes(b"PK")
    output = run("ls")
    for said in ("h100-sxm", "NVIDIA H100 80GB HBM3", "mine", "NVIDIA H200", "sm_90", "qwen3-8b none", "2025-01-02"):
        assert said in output
    assert "broken.zip is no readable zip" in output
    assert [(each["name"], each["num_rows"], each["num_binaries"]) for each in as_json("ls")] == [
        ("mine", 4, 1),
        ("h100-sxm", 4, 1),
    ]


def test_ls_without_packs_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "SHIPPED", tmp_path / "nowhere")
    assert "no packs in" in run("ls")
    assert as_json("ls") == []


def test_show_says_what_it_cost_and_stands_each_row_beside_its_floor() -> None:
    output = run("show", "h100-sxm")
    for said in ("132 processors", "3.000 TB/s", "60 s, the GPU busy for 20 s", "3.5 us of Python", "torch 2.13.0"):
        assert said in output
    line = next(line for line in output.splitlines() if RMS_NORM in line)
    for said in ("helion", "4.00", "3.60 to 4.40", "3.00", "75%", "torch 8.00", "2.00x"):
        assert said in line


def test_show_can_be_asked_for_some_rows() -> None:
    def shown(*options: str) -> set[str]:
        return {each["contract"] for each in as_json("show", "h100-sxm", *options)["rows"]}

    assert shown() == {RMS_NORM, GEMM}
    assert shown("--op", "linear") == {GEMM}
    assert shown("--op", "linear", "--op", "rms_norm") == {RMS_NORM, GEMM}
    assert shown("--contract", "hidden_size=4096") == {RMS_NORM}
    assert "has no rows of op 'rope'; it has linear, rms_norm" in run("show", "h100-sxm", "--op", "rope", status=1)


def test_whole_blocks_are_shown_with_their_rows_and_counted(tmp_path: Path) -> None:
    blocks = (BlockTime((RMS_NORM, GEMM), 16, 6.0), BlockTime((RMS_NORM,), 64, 4.0))
    write_pack(pack(name="whole", blocks=blocks), FILES, tmp_path / "whole.zip")
    output = run("show", "whole.zip")
    line = next(line for line in output.splitlines() if "rms_norm, linear" in line)
    for said in ("16", "6.00", "8.00", "75%"):
        assert said in line
    assert "whole blocks" not in run("show", "old.zip")
    assert len(as_json("show", "whole.zip")["blocks"]) == 2
    [of_linear] = as_json("show", "whole.zip", "--op", "linear")["blocks"]
    assert of_linear["contracts"] == [RMS_NORM, GEMM]
    assert "4 rows, 2 times of whole blocks and 1 binaries: no problems" in run("verify", "whole.zip")
    assert "times of whole blocks: 0 in A, 2 in B" in run("diff", "old.zip", "whole.zip")
    assert "4 rows, 2 times of whole blocks and 1 binaries" in run("merge", "old.zip", "whole.zip", "-o", "new.zip")


def test_an_unknown_pack_is_an_error_that_lists_the_known_ones() -> None:
    assert "known are h100-sxm" in run("show", "b200", status=1)


def test_diff_shows_what_changed_and_counts_the_rest() -> None:
    output = run("diff", "old.zip", "new.zip")
    assert "only in A" in output
    assert "helion 4.00 us" in output
    assert "torch 2.00 us" in output
    assert "0.50x" in output
    assert "4 rows choose the same, median time B/A 1.00x" in run("diff", "old.zip", "old.zip")
    [changed] = [each for each in as_json("diff", "old.zip", "new.zip") if each["change"] == "provider"]
    assert (changed["contract"], changed["num_tokens"], changed["time_ratio"]) == (RMS_NORM, 16, 0.5)


def test_verify_is_quiet_about_a_good_pack() -> None:
    assert "4 rows and 1 binaries: no problems" in run("verify", "old.zip")
    assert as_json("verify", "old.zip") == {"pack": "old", "problems": [], "stale_checked": True}


def test_verify_exits_with_1_and_names_each_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_commands, "_source_hashes", lambda: HASHES | {"rms_norm": "f" * 64})
    write_pack(pack(), FILES, tmp_path / "bad")
    (tmp_path / "bad" / "bin" / "rms_norm.cubin").write_bytes(b"")
    output = run("verify", "bad", status=1)
    assert "bin/rms_norm.cubin has 0 bytes" in output
    assert "rms_norm: its 3 rows in pack h100-sxm are not used" in output
    assert "2 problems" in output
    assert len(as_json("verify", "bad", status=1)["problems"]) == 2


def test_verify_compares_with_the_sources_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    here = {name: value for name, value in source_hashes().items() if name in HASHES}
    assert here.keys() == HASHES.keys()
    write_pack(pack(source_hashes=here), FILES, tmp_path / "fresh.zip")
    assert as_json("verify", "fresh.zip")["problems"] == []
    assert len(as_json("verify", "old.zip", status=1)["problems"]) == 2


def test_merge_writes_a_pack_by_the_name_of_its_file_or_another(tmp_path: Path) -> None:
    assert "4 rows and 1 binaries" in run("merge", "old.zip", "new.zip", "-o", "both.zip")
    merged = read_pack(tmp_path / "both.zip").pack
    assert merged.name == "both"
    assert {each.best.provider for each in merged.rows if each.num_tokens == 16} == {"torch", "helion"}
    summary = as_json("merge", "old.zip", "new.zip", "--output", "folder", "--name", "mine")
    assert (summary["name"], summary["path"], summary["num_rows"]) == ("mine", "folder", 4)
    assert (tmp_path / "folder" / "pack.json").is_file()
