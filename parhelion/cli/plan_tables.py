"""A plan as tables for a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from parhelion.cli.output import format_bytes
from parhelion.cli.plan_report import PlannedFit, PlannedLayout, PlannedTime, PlanReport


def layouts_table(report: PlanReport) -> Table:
    """One line a layout, the best first."""
    work = report.workload
    table = Table(
        title=f"{escape(report.model)} ({escape(report.quantization)}) on {report.num_gpus} x {escape(report.device)}: "
        f"{work.input_len} tokens in, {work.output_len} out, for {work.objective}; batch of a replica, times in ms",
        title_justify="left",
    )
    table.add_column("tp x pp x dp", no_wrap=True)
    for heading in ("batch", "TPOT", "prefill", "request", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("TPOT is")
    for each in report.layouts:
        table.add_row(
            f"{each.tp} x {each.pp} x {each.dp}",
            str(each.batch),
            f"{each.tpot.ms:.2f}",
            f"{each.prefill.ms:.1f}",
            f"{1e3 * each.request_s:.0f}",
            f"{each.tokens_per_s:,.0f}",
            known(each.tpot) + (f"; stages idle {each.tpot.bubble:.0%}" if each.pp > 1 else ""),
        )
    return table


def known(time: PlannedTime) -> str:
    """How a time is known, such as ``89% measured, 11% scaled``."""
    parts = {name: getattr(time, name) for name in ("measured", "scaled", "floor", "links", "host")}
    return ", ".join(f"{share:.0%} {name}" for name, share in parts.items() if share >= 0.005)


def memory_table(best: PlannedLayout) -> Table:
    """What the fullest rank of a layout holds."""
    memory = best.memory
    table = Table(title="memory of the fullest rank", title_justify="left")
    for heading in ("what", "figure"):
        table.add_column(heading)
    table.add_column("bytes", justify="right")
    rows = (
        ("weights", "computed", memory.weights),
        ("KV cache", f"computed: {memory.kv_tokens:,} tokens, {memory.num_requests:,} requests", memory.kv_cache),
        ("activations", "estimated", memory.activations),
        ("graphs", "scaled from an H100's", memory.graphs),
        ("driver, libraries", "estimated", memory.reserved),
        ("device", "given", memory.total),
    )
    for what, figure, count in rows:
        table.add_row(what, figure, format_bytes(count))
    return table


def fits_table(fits: Sequence[PlannedFit]) -> Table:
    """Weights of a rank and what a replica's KV cache holds, by quantization and tp."""
    table = Table(title=f"what fits a rank (pp {fits[0].pp})", title_justify="left")
    table.add_column("quantization")
    for heading in ("tp", "weights", "KV cache", "KV tokens", "requests a replica"):
        table.add_column(heading, justify="right")
    for each in fits:
        memory = each.memory
        if memory is None:
            table.add_row(each.quantization, str(each.tp), "cannot be divided so", "", "", "")
            continue
        table.add_row(
            each.quantization,
            str(each.tp),
            format_bytes(memory.weights),
            format_bytes(memory.kv_cache),
            f"{memory.kv_tokens:,}",
            f"{memory.num_requests:,}",
        )
    return table
