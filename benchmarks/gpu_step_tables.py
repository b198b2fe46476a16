"""The tables of what ``step_trace.py`` and ``siblings.py`` measured, as ``tables.py`` writes them into documents."""

from __future__ import annotations

import json
from typing import Any

LONG_GAP_US = 3.0
"""Gaps of a trace are listed from here on."""


def step_trace_table(content: bytes) -> str:
    """A line a model and batch: what a step takes, how much of it nothing runs, and the longest of these gaps."""
    found = json.loads(content)
    lines = [
        "| model | batch | a step, us | nothing runs, us | of it | launches | longest gap a step |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for model, steps in found["models"].items():
        for batch, step in steps.items():
            launches = sum(count for count, _ in step["kernels"].values())
            share = step["idle_us"] / step["step_us"]
            cells = (f"{step['step_us']:,.0f}", f"{step['idle_us']:.0f}", f"{share:.1%}", f"{launches:.0f}")
            lines.append(f"| {model} | {batch} | {' | '.join(cells)} | {_gap(step['gaps'])} |")
    return "\n".join([*lines, "", f"Means of 8 steps, under a profiler. {_where(found)}"])


def _gap(gaps: list[list[Any]]) -> str:
    """Between which two kernels the device waits longest in all."""
    if not gaps:
        return f"none of {LONG_GAP_US:g} us"
    before, after, count, microseconds = gaps[0]
    times = "" if count < 1.5 else f" ({count:.0f} of them)"
    return f"{microseconds:.1f} us{times}: {_short(before)} to {_short(after)}"


def _short(name: str) -> str:
    """A kernel's name without its namespaces, parameters and grid."""
    return name.split("(")[0].split("<")[0].split(" [")[0].removeprefix("void ").split("::")[-1].strip()


def siblings_table(content: bytes) -> str:
    """A line a model, number of requests and guesses."""
    found = json.loads(content)
    lines = ["| model | requests | guesses of each | together, us | apart, us | without guesses, as many rows, us |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in found["rows"]:
        times = (f"{row[f'{way}_us']:.1f}" for way in ("together", "apart", "decode"))
        lines.append(f"| {row['model']} | {row['requests']} | {row['guesses']} | {' | '.join(times)} |")
    wrong = sum(name.endswith("_problem") for row in found["rows"] for name in row)
    checked = "all beside the reference within its bounds" if not wrong else f"{wrong} of them NOT as the reference"
    said = [f"Head norms, rotation and attention of a layer, {checked}.", *found["notes"], _where(found)]
    return "\n".join([*lines, "", " ".join(said)])


def _where(found: dict[str, Any]) -> str:
    circumstances = found["circumstances"]
    versions = {each["name"]: each["version"] for each in circumstances["packages"]}
    date = circumstances["measured_at"][:10]
    return f"{found['device']}, torch {versions['torch']}, pack {found['pack']}, {date}; `{found['command']}`."
