"""``generate`` and ``bench`` against the real engine with a tiny share of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parhelion.cli.main import build_app

runner = CliRunner()
ENGINE = ["--kv-cache-memory", "64MiB", "--threads", "2"]


def test_generate_prints_json_only_with_one_output_a_prompt(tiny_path: Path) -> None:
    arguments = ["--max-tokens", "4", "--temperature", "0", "--prompt", "The sky is", "--prompt", "One two", "--json"]
    result = runner.invoke(build_app(), ["generate", str(tiny_path), *ENGINE, *arguments])
    outputs = json.loads(result.stdout)
    assert [output["prompt"] for output in outputs] == ["The sky is", "One two"]
    assert all(len(output["outputs"][0]["token_ids"]) == 4 for output in outputs)
    assert all(output["outputs"][0]["finish_reason"] == "length" for output in outputs)


def test_generate_reads_prompts_from_stdin_a_line_each(tiny_path: Path) -> None:
    arguments = ["generate", str(tiny_path), *ENGINE, "--max-tokens", "2", "--temperature", "0"]
    result = runner.invoke(build_app(), arguments, input="First line\n\nSecond line\n")
    assert result.exit_code == 0
    assert "--- 0 'First line'" in result.stdout
    assert "--- 1 'Second line'" in result.stdout


def test_generate_without_any_prompt_is_a_usage_error() -> None:
    result = runner.invoke(build_app(), ["generate", "smollm2-135m"], input="\n")
    assert result.exit_code == 2
    assert "--prompt" in result.output


@pytest.mark.parametrize(
    ("arguments", "quantities"),
    [
        (["latency", "--prompt-length", "8", "--output-length", "4", "--rounds", "2"], {"TTFT", "decode per token"}),
        (
            ["throughput", "--num-requests", "3", "--prompt-length", "8", "--output-length", "4", "--rounds", "2"],
            {"requests", "generated tokens", "all tokens"},
        ),
    ],
)
def test_bench_writes_figures_with_their_circumstances(
    tiny_path: Path, tmp_path: Path, arguments: list[str], quantities: set[str]
) -> None:
    file = tmp_path / "deep" / "result.json"
    command = ["bench", arguments[0], str(tiny_path), *arguments[1:], *ENGINE, "--output", str(file), "--json"]
    result = runner.invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert json.loads(result.stdout)["measurements"] == report["measurements"]
    assert {measurement["quantity"] for measurement in report["measurements"]} == quantities
    assert all(measurement["summary"]["median"] > 0 for measurement in report["measurements"])
    circumstances = report["circumstances"]
    assert circumstances["machine"]["cores"] >= 1
    assert {"parhelion", "torch"} <= {package["name"] for package in circumstances["packages"]}
    assert circumstances["measured_at"].endswith("+00:00")
