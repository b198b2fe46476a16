"""Packs as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from parhelion.cli.output import format_bytes

if TYPE_CHECKING:
    from parhelion.packs.diff import Difference
    from parhelion.packs.format import Candidate
    from parhelion.packs.summary import BlockSummary, PackSummary, RowSummary

_ANY = "any, not measured"
_CHANGES = {"only_a": "only in A", "only_b": "only in B", "provider": "provider", "config": "config", "same": "same"}


def packs_table(summaries: Iterable[PackSummary]) -> Table:
    """One line a pack."""
    table = _table("packs", ("name", "device", "target", "models", "created"), ("rows", "binaries", "size"))
    for each in summaries:
        table.add_row(
            escape(each.name),
            escape(each.fingerprint.device or _ANY),
            escape(each.fingerprint.target),
            escape(", ".join(each.models)) or "-",
            escape(each.created_at),
            str(each.num_rows),
            str(each.num_binaries),
            format_bytes(each.disk_bytes),
        )
    return table


def pack_table(pack: PackSummary) -> Table:
    """What a pack was measured on and with, what it cost and what it takes."""
    device, ledger = pack.fingerprint, pack.ledger
    bandwidth = f"{device.bandwidth / 1e12:.3f} TB/s" if device.bandwidth else "bandwidth not measured"
    lines = (
        ("path", pack.path),
        ("device", f"{device.device or _ANY} ({device.vendor} {device.target})"),
        ("", f"{device.num_processors} processors, {format_bytes(device.memory_bytes)}, {bandwidth}"),
        ("made", f"{pack.created_at} by: {pack.command}"),
        ("with", ", ".join(f"{name} {version}" for name, version in sorted(pack.versions.items())) or "-"),
        ("models", ", ".join(pack.models) or "-"),
        ("tuning", f"{ledger.tune_s:.0f} s, the GPU busy for {ledger.gpu_s:.0f} s; {ledger.num_timed} configs timed"),
        (
            "compiling",
            f"{ledger.compile_s:.0f} processor s for {ledger.num_compiled} candidates, {ledger.num_dropped} given up; "
            f"{ledger.build_s:.0f} s for what is kept",
        ),
        (
            "binaries",
            f"{pack.num_binaries}, {format_bytes(pack.binary_bytes)}; on disk {format_bytes(pack.disk_bytes)}",
        ),
        ("workspace", f"{format_bytes(pack.workspace_bytes)} at most for one launch"),
        ("launch", f"{ledger.launch_us:.1f} us of Python" if ledger.launch_us else "not measured"),
    )
    table = Table(title=f"pack {escape(pack.name)}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in lines:
        table.add_row(heading, escape(text))
    return table


def rows_table(rows: Iterable[RowSummary]) -> Table:
    """One line a bucket: who serves, how near the floor, and how far the next one is behind."""
    figures = ("us", "p10 to p90", "floor us", "of floor", "runner-up us", "ratio")
    table = _table("rows", ("contract", "M up to", "provider"), figures)
    for row in rows:
        table.add_row(
            escape(row.contract),
            str(row.num_tokens),
            escape(row.provider),
            f"{row.time_us:.2f}" if row.time_us else "-",
            f"{row.time_us_p10:.2f} to {row.time_us_p90:.2f}" if row.time_us else "not measured",
            f"{row.floor_us:.2f}" if row.floor_us else "-",
            f"{row.of_floor:.0%}" if row.of_floor is not None else "-",
            f"{escape(row.runner_up)} {row.runner_up_us:.2f}" if row.runner_up is not None else "-",
            _ratio(row.runner_up_ratio),
        )
    return table


def blocks_table(blocks: Iterable[BlockSummary]) -> Table:
    """One line a way to compute a whole block at an M: what it takes, beside its launches by themselves."""
    table = _table("whole blocks", ("launches",), ("M", "us", "sum us", "of sum"))
    for each in blocks:
        table.add_row(
            escape(", ".join(each.ops)),
            str(each.num_tokens),
            f"{each.time_us:.2f}",
            f"{each.sum_us:.2f}" if each.sum_us is not None else "-",
            f"{each.of_sum:.0%}" if each.of_sum is not None else "-",
        )
    return table


def differences_table(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    """What changed; buckets with the same choice are counted in the caption."""
    same = [each.time_ratio for each in differences if each.change == "same" and each.time_ratio is not None]
    table = _table(
        f"A: {escape(names[0])}, B: {escape(names[1])}", ("contract", "M up to", "change", "A", "B"), ("B/A",)
    )
    table.caption = f"{sum(each.change == 'same' for each in differences)} rows choose the same"
    table.caption += f", median time B/A {median(same):.2f}x" if same else ""
    for each in differences:
        if each.change != "same":
            table.add_row(
                escape(each.contract),
                str(each.num_tokens),
                _CHANGES[each.change],
                _candidate(each.a),
                _candidate(each.b),
                _ratio(each.time_ratio),
            )
    return table


def _table(title: str, words: Iterable[str], figures: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def _candidate(candidate: Candidate | None) -> str:
    return f"{escape(candidate.provider)} {candidate.time_us:.2f} us" if candidate is not None else "-"


def _ratio(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio is not None else "-"
