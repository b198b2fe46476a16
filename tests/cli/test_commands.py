"""The command as a user meets it: help, versions, errors, exit codes, JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parhelion import __version__
from parhelion.cli.main import build_app
from parhelion.cli.output import format_bytes

runner = CliRunner()
COMMANDS = [
    "pull",
    "serve",
    "generate",
    "chat",
    "doctor",
    "build",
    "tune",
    "report",
    "plan",
    "pack ls",
    "pack show",
    "bench compare",
    "bench latency",
    "bench throughput",
    "bench serve",
    "bench kernels",
]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def parhelion(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "parhelion.cli", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = runner.invoke(build_app(), [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example: parhelion {command}" in result.output


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("chat", "doctor")] + ["doctor"])
def test_commands_that_a_program_may_read_offer_json(command: str) -> None:
    assert "--json" in runner.invoke(build_app(), [*command.split(), "--help"]).output


@pytest.mark.parametrize("command", ["serve", "generate", "chat", "bench latency", "bench serve"])
def test_engine_options_are_the_same_everywhere(command: str) -> None:
    output = runner.invoke(build_app(), [*command.split(), "--help"]).output
    for option in (
        "--kv-cache-memory",
        "--max-num-batched-tokens",
        "--no-enable-prefix-caching",
        "--dtype",
        "--threads",
    ):
        assert option in output


def test_version_is_the_packages() -> None:
    assert runner.invoke(build_app(), ["--version"]).output.strip() == f"parhelion {__version__}"


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, parhelion.cli.main as m\nm.build_app()\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'fastapi') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_an_error_is_one_line_on_stderr_and_status_1() -> None:
    result = parhelion("pull", "no-such-model")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: no model is called 'no-such-model'")
    assert len(result.stderr.strip().splitlines()) == 1


def test_debug_logging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARHELION_LOG", "DEBUG")
    result = parhelion("pull", "no-such-model")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ModelNotFoundError" in result.stderr


def test_a_wrong_option_is_a_usage_error() -> None:
    result = runner.invoke(build_app(), ["serve", "m", "--prot", "1"])
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_pull_without_a_name_says_how_to_list() -> None:
    result = runner.invoke(build_app(), ["pull"])
    assert result.exit_code == 2
    assert "--list" in result.output


def test_pull_list_names_the_default_model_in_text_and_json() -> None:
    assert "smollm2-135m" in runner.invoke(build_app(), ["pull", "--list"]).output
    listed = json.loads(runner.invoke(build_app(), ["pull", "--list", "--json"]).stdout)
    [entry] = [entry for entry in listed if entry["name"] == "smollm2-135m"]
    assert entry["license"] == "Apache-2.0"
    assert entry["path"] is None


def test_pull_of_a_folder_prints_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    result = runner.invoke(build_app(), ["pull", str(folder), "--json"])
    assert json.loads(result.stdout) == {"name": str(folder), "path": str(folder)}


def test_serve_names_a_taken_port_before_it_fetches_anything() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = runner.invoke(build_app(), ["serve", "smollm2-135m", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "--port" in result.output


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (512 << 20, "512.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_sizes_are_shown_in_binary_units(count: int, shown: str) -> None:
    assert format_bytes(count) == shown
