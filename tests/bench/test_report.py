"""Reports, prompts and command lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from parhelion.bench.machine import command_line, describe_circumstances, installed_version
from parhelion.bench.report import Measurement, format_figure, make_report, to_table, write_json
from parhelion.bench.workload import random_prompts
from parhelion.platform.measure import summarize


@dataclass(frozen=True)
class Settings:
    rounds: int = 3


def test_a_report_is_written_whole_and_shown_as_a_table(tmp_path: Path) -> None:
    measurement = Measurement("prompt 8", "TTFT", "ms", summarize([1.0, 2.0, 4.0]))
    report = make_report("latency", Settings(), [measurement], ["a note"])
    write_json(report, tmp_path / "new" / "report.json")
    read = json.loads((tmp_path / "new" / "report.json").read_text())
    assert read["settings"] == {"rounds": 3}
    assert read["notes"] == ["a note"]
    assert read["measurements"][0]["summary"]["median"] == 2.0
    assert read["circumstances"]["machine"]["name"]
    console = Console(width=120, file=StringIO())
    console.print(to_table(report))
    text = console.file.getvalue()
    assert "TTFT (ms)" in text
    assert "1.20 to 3.60" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.0123, "0.0123"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12346"),
    ],
)
def test_figures_have_three_digits_or_so_and_no_exponent(value: float, shown: str) -> None:
    assert format_figure(value) == shown


def test_prompts_come_from_the_seed_and_all_differ() -> None:
    prompts = random_prompts(count=5, length=7, vocab_size=1000, seed=1)
    assert prompts == random_prompts(count=5, length=7, vocab_size=1000, seed=1)
    ids = [tuple(prompt["prompt_token_ids"]) for prompt in prompts]
    assert len(set(ids)) == 5
    assert all(len(prompt) == 7 and all(100 <= token < 1000 for token in prompt) for prompt in ids)
    assert prompts != random_prompts(count=5, length=7, vocab_size=1000, seed=2)


def test_prompts_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot draw 0 prompts"):
        random_prompts(count=0, length=7, vocab_size=1000, seed=1)


def test_a_command_line_holds_no_folder() -> None:
    assert command_line(["/somewhere/benchmarks/memory.py", "--quick"]) == "python benchmarks/memory.py --quick"
    assert command_line(["/x/bin/parhelion", "bench", "latency"]) == "parhelion bench latency"
    assert command_line(["m.py", "--pack", "/x/h100.zip"]) == "python benchmarks/m.py --pack h100.zip"
    assert command_line(["m.py", "--output", "/x/y.json", "--quick"]) == "python benchmarks/m.py --quick"
    assert command_line(["/x/parhelion/cli/__main__.py", "a b"]) == "parhelion 'a b'"


def test_circumstances_name_the_packages_that_are_there() -> None:
    names = {package.name: package.version for package in describe_circumstances("x").packages}
    assert names["torch"]
    assert installed_version("no-such-distribution") is None
