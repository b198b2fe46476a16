"""What the documents say is so: examples compile, options exist, links lead somewhere, tables are up to date."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from parhelion.cli.main import build_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def load_script(path: Path) -> ModuleType:
    """A script as a module; its records look up their field types there when they first decode something."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


TABLES = load_script(ROOT / "benchmarks" / "tables.py")


def fenced(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.mark.parametrize("code", fenced(ROOT / "README.md", "python"))
def test_python_examples_compile_and_their_imports_exist(code: str) -> None:
    compile(code, "README.md", "exec")
    imports = [line for line in code.splitlines() if re.match(r"(from|import) ", line)]
    exec("\n".join(imports), {})


def shell_commands() -> list[str]:
    lines = "\n".join(fenced(ROOT / "README.md", "sh")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("parhelion ")]


@pytest.mark.parametrize("line", shell_commands())
def test_shell_commands_use_commands_and_options_that_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = shlex.split(line)[1:]
    command = words[:2] if words[0] == "bench" else words[:1]
    help_text = CliRunner().invoke(build_app(), [*command, "--help"])
    assert help_text.exit_code == 0
    for word in words:
        assert not word.startswith("--") or word in help_text.output


def test_the_servers_page_names_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = (ROOT / "docs" / "server.md").read_text()
    of_others = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    named = set(re.findall(r"`(--[a-z-]+)", page)) - set(re.findall(r"--[a-z-]+", "".join(of_others)))
    options = set(re.findall(r"--[a-z-]+", CliRunner().invoke(build_app(), ["serve", "--help"]).output))
    assert {"--tp", "--kv-cache-fraction", "--api-key"} <= named <= options


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_match_the_measured_results(document: Path) -> None:
    text = document.read_text()
    assert TABLES.with_fresh_tables(text) == text, "run: make tables"


def test_plots_show_the_measured_results() -> None:
    plots = {path: text for path, text in TABLES.fresh_files() if path.suffix == ".svg"}
    assert plots
    for path, text in plots.items():
        assert path.read_text() == text, f"{path.name}: run: make tables"


def test_a_table_that_nothing_measures_is_refused() -> None:
    with pytest.raises(ValueError, match="no table is called 'nonsense'"):
        TABLES.table_named("nonsense")
