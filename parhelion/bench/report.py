"""What a benchmark leaves behind: one record, shown as a table and written as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.table import Table

from parhelion.bench.machine import Circumstances, describe_circumstances
from parhelion.platform.measure import Summary


@dataclass(frozen=True)
class Measurement:
    """A quantity in one case, such as TTFT at a prompt of 128 tokens."""

    case: str
    quantity: str
    unit: str
    summary: Summary


@dataclass(frozen=True)
class Report:
    """A benchmark's result.

    Attributes:
        benchmark: its name.
        settings: the benchmark's own options, a dataclass.
        measurements: in the order of the table.
        notes: sentences that a reader of the figures must know.
    """

    benchmark: str
    settings: object
    measurements: tuple[Measurement, ...]
    circumstances: Circumstances
    notes: tuple[str, ...] = ()


def make_report(
    benchmark: str, settings: object, measurements: list[Measurement], notes: list[str] | None = None
) -> Report:
    """A report of what was just measured here."""
    return Report(benchmark, settings, tuple(measurements), describe_circumstances(), tuple(notes or ()))


def to_json(report: object) -> bytes:
    """A report (any dataclass) as indented JSON."""
    encoded = msgspec.json.encode(asdict(report), enc_hook=str)  # type: ignore[call-overload]
    return msgspec.json.format(encoded, indent=2) + b"\n"


def write_json(report: object, path: Path) -> None:
    """Write a report, making the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json(report))


def to_table(report: Report) -> Table:
    """The report for a person: median, and the 10th to 90th percentile as its spread."""
    machine = report.circumstances.machine
    table = Table(title=report.benchmark, caption=f"{machine.name}, {machine.cores} cores", title_justify="left")
    for heading in ("case", "quantity"):
        table.add_column(heading)
    for heading in ("median", "p10 to p90", "p99", "n"):
        table.add_column(heading, justify="right")
    for measurement in report.measurements:
        s = measurement.summary
        table.add_row(
            measurement.case,
            f"{measurement.quantity} ({measurement.unit})",
            format_figure(s.median),
            f"{format_figure(s.p10)} to {format_figure(s.p90)}",
            format_figure(s.p99),
            str(s.count),
        )
    return table


def format_figure(value: float) -> str:
    """Three significant digits or all of the integer part, never an exponent: ``0.0123``, ``12.3``, ``12345``."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"
