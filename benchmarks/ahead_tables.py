"""The tables of what is done ahead of time: tuning, starting, and both beside the published integration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from full_effort_table import Comparison, full_effort_lines


class TuneRow(msgspec.Struct):
    """What serves one contract and M, as ``h100_tune.py`` writes it."""

    op: str
    m: int
    provider: str
    time_us: float
    untuned_us: float
    floor_us: float
    rivals: dict[str, float]

    def of(self, provider: str) -> float | None:
        """Microseconds of a provider; None if it was not measured."""
        return self.time_us if provider == self.provider else self.rivals.get(provider)


class TuneResult(msgspec.Struct):
    """What ``h100_tune.py`` writes."""

    device: str
    versions: dict[str, str]
    command: str
    measured_at: str
    model: str
    quantization: str
    tune_s: float
    rows: list[TuneRow]
    full_effort: list[Comparison]


TOKENS = ((1, 32), (64, 256), (512, 8192))
"""Sizes of M that matrix products are summed up over, from and to."""


def tune_table(content: bytes) -> str:
    """What tuning a model took and what came of it."""
    result = msgspec.json.decode(content, type=TuneResult)
    lines = [
        "| op | rows | served by its tile program | tuned over untuned | of the floor |",
        "|---|---:|---:|---:|---:|",
    ]
    for op in dict.fromkeys(row.op for row in result.rows):
        rows = [row for row in result.rows if row.op == op]
        own = sum(row.provider == "helion" for row in rows)
        gains = [row.untuned_us / row.time_us for row in rows if row.untuned_us > 0]
        floors = [row.floor_us / row.time_us for row in rows]
        lines.append(f"| `{op}` | {len(rows)} | {own} | {_mean_and_lowest(gains)} | {_mean(floors):.0%} |")
    lines += ["", "| FP8 `scaled_mm`, M | served, over cuBLASLt | its tile program, over cuBLASLt |", "|---|---:|---:|"]
    for first, last in TOKENS:
        rows = [row for row in result.rows if row.op == "scaled_mm" and first <= row.m <= last]
        served, tiles = ([], [])  # type: tuple[list[float], list[float]]
        for row in rows:
            torch_us, own_us = row.of("torch"), row.of("helion")
            if torch_us is not None:
                served.append(torch_us / row.time_us)
                tiles += [torch_us / own_us] if own_us is not None else []
        lines.append(f"| {first} to {last} | {_mean_and_lowest(served)} | {_mean_and_lowest(tiles)} |")
    if searched := full_effort_lines(result.full_effort):
        lines += ["", *searched]
    versions = ", ".join(f"{name} {result.versions[name]}" for name in ("torch", "triton", "helion"))
    note = (
        f"{result.model} {result.quantization}: {len(result.rows)} rows in {result.tune_s:.0f} s. Ratios are geometric "
        f"means (lowest in brackets). {result.device}, {versions}, {result.measured_at[:10]}; "
        f"`{result.command}`."
    )
    return "\n".join([*lines, "", note])


class ColdStart(msgspec.Struct):
    """What ``cold_start.py`` writes."""

    command: str
    model: str
    device: str
    versions: dict[str, str]
    rounds: list[dict[str, float | str | dict[str, float]]]
    total_s: float


PHASES = {
    "imports": ("imports",),
    "pack": ("of the engine", "engine: pack"),
    "weights": ("of the engine", "engine: weights"),
    "first steps, which compile where no pack serves": ("of the engine", "engine: first steps"),
    "CUDA graphs": ("of the engine", "engine: graphs"),
    "first token": ("first token",),
    "in all": ("total",),
}
"""What is shown, and where it stands in a round."""


def cold_start_table(content: bytes) -> str:
    """Seconds from the start of a process to its first token."""
    result = msgspec.json.decode(content, type=ColdStart)
    lines = ["| phase | s |", "|---|---:|"]
    for name, place in PHASES.items():
        values = [_at(each, place) for each in result.rounds]
        lines.append(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")
    note = (
        f"{result.model} with dummy FP8 weights, page cache cold, median and range of {len(result.rounds)} rounds. "
        f"{result.device}, torch {result.versions['torch']}; `{result.command}`."
    )
    return "\n".join([*lines, "", note])


def corners_table(content: bytes, results: Path) -> str:
    """Performance, use out of the box and maintainability, beside what is published of vLLM's Helion kernels."""
    tuned = msgspec.json.decode(content, type=TuneResult)
    cold = msgspec.json.decode((results / "cold_start.json").read_bytes(), type=ColdStart)
    launchers = msgspec.json.decode((results / "h100_launchers.json").read_bytes())
    launch_us = {row["case"]: row["summary"]["median"] for row in launchers["measurements"]}
    small = [
        row.of("torch") / row.time_us  # type: ignore[operator]
        for row in tuned.rows
        if row.op == "scaled_mm" and row.m <= TOKENS[0][1] and row.of("torch") is not None
    ]
    rows = [
        ("FP8 `scaled_mm`, M <= 32", "1.11x CUTLASS", f"{_mean_and_lowest(small)} cuBLASLt"),
        (
            "tuning for a device",
            "168 matrix products: about a day",
            f"{len(tuned.rows)} rows of {tuned.model}, all ops and sizes: {tuned.tune_s:.0f} s",
        ),
        (
            "compiled while the server starts",
            "28 kernels: 4 to 18 s",
            f"nothing: {cold.total_s:.1f} s from the process's start to the first token",
        ),
        ("Python's part of one launch", "30 to 60 us", f"{launch_us['packed binary, looked up']:.1f} us"),
        (
            "a device that nobody tuned for",
            "all kernels off",
            "the nearest pack or generic configs serve, and `parhelion doctor` says so",
        ),
        ("what is kept up", "one source, and a config for every shape", "one source; packs are made by one command"),
    ]
    lines = ["| | published integration | Parhelion |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    note = (
        'Published: "Portable vLLM Model Inference Kernels in Helion" (PyTorch blog, June 2026) and "Building a '
        'High-Performance and Portable vLLM Linear Backend with Helion" (October 2026), on an H100. Parhelion: '
        f"{tuned.device}, from `benchmarks/results/h100_tune.json`, `cold_start.json` and `h100_launchers.json`."
    )
    return "\n".join([*lines, "", note])


def _at(row: dict[str, float | str | dict[str, float]], place: tuple[str, ...]) -> float:
    value: object = row
    for name in place:
        assert isinstance(value, dict)
        value = value[name]
    assert isinstance(value, float)
    return value


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _mean_and_lowest(values: Sequence[float]) -> str:
    return f"{_mean(values):.2f}x ({min(values):.2f})" if values else "-"
