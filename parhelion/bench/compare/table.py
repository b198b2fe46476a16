"""The comparison for a person."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parhelion.bench.compare.results import Comparison, EngineRow, OnlineRow, Row, Spread
from parhelion.bench.report import format_figure

_FIGURES = (
    "prefill ms",
    "of its floor",
    "TPOT ms",
    "range",
    "floor ms",
    "of floor",
    "out tok/s",
    "total tok/s",
    "ours / its",
)


def to_tables(comparison: Comparison) -> Group:
    """Decoding and prefill, starts and memory, servers: the tables that have rows, and what they have no room for."""
    shown: list[Table | Text] = []
    if comparison.rows:
        shown.append(offline_table(comparison))
        shown += [Text(line) for line in _refusals(comparison.rows)]
    if comparison.engines:
        shown.append(engines_table(comparison))
        shown += [Text(_served_by(row)) for row in comparison.engines if row.facts.versions]
    if comparison.online:
        shown.append(online_table(comparison))
    return Group(*shown)


def offline_table(comparison: Comparison) -> Table:
    """A line an engine, batch and model."""
    settings = comparison.settings
    title = f"{settings.input_length} tokens in, {settings.output_length} out, greedy, {settings.rounds} rounds"
    caption = f"{comparison.device}, copies at {comparison.bandwidth / 1e12:.3g} TB/s; alive: {comparison.alive}"
    table = _table(title, caption, ("model", "batch", "engine"))
    for heading in _FIGURES:
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        for name in row.tpot_ms:
            table.add_row(row.model, str(row.batch), escape(name), *_offline_figures(row, name))
    return table


def _offline_figures(row: Row, name: str) -> list[str]:
    low, high = row.tpot_ms_range[name]
    return [
        format_figure(row.prefill_ms[name]),
        "-" if row.prefill_floor_ms is None else f"{row.prefill_floor_ms / row.prefill_ms[name]:.0%}",
        format_figure(row.tpot_ms[name]),
        f"{format_figure(low)} to {format_figure(high)}",
        "-" if row.floor_ms is None else format_figure(row.floor_ms),
        f"{row.of_floor[name]:.0%}" if name in row.of_floor else "-",
        format_figure(row.output_tokens_per_s[name]),
        format_figure(row.total_tokens_per_s[name]),
        _ratio(row, name),
    ]


def _ratio(row: Row, name: str) -> str:
    """Times of a token, this engine's over Parhelion's."""
    if name in row.refused:
        return "none"
    if name not in row.tpot_ratio:
        return ""
    ratio = row.tpot_ratio[name]
    return f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def _refusals(rows: Iterable[Row]) -> list[str]:
    return [
        f"no ratio with {name} for {row.model} at batch {row.batch}: {why}"
        for row in rows
        for name, why in row.refused.items()
    ]


def engines_table(comparison: Comparison) -> Table:
    """A line an engine and model: how it started, and what it took."""
    table = _table("starts and memory", f"memory: {comparison.memory_source}", ("model", "engine"))
    for heading in ("import s", "load s", "ready s", "first token s", "peak GiB", "of it KV GiB"):
        table.add_column(heading, justify="right")
    for row in comparison.engines:
        times = (row.import_s, row.load_s, row.ready_s, row.first_token_s, row.peak_gib, row.kv_cache_gib)
        figures = ["given up"] if row.error and row.ready_s is None else [*map(_or_dash, times)]
        table.add_row(row.model, escape(row.engine), *figures)
    return table


def _served_by(row: EngineRow) -> str:
    """Versions, pack, and who serves each op, in a line."""
    facts = row.facts
    parts = [", ".join(f"{name} {version}" for name, version in facts.versions.items())]
    parts += [f"pack {facts.pack}"] if facts.pack else []
    parts += [" ".join(facts.kernels)] if facts.kernels else []
    return f"{row.engine}, {row.model}: {'; '.join(parts)}"


def online_table(comparison: Comparison) -> Table:
    """A line a server and load."""
    limits = comparison.online_settings
    caption = f"good: TTFT within {limits.ttft_limit_ms:g} ms and TPOT within {limits.tpot_limit_ms:g} ms"
    table = _table("servers", caption, ("model", "load", "server"))
    for heading in (
        "TTFT ms p50 / p99",
        "TPOT ms p50 / p99",
        "ITL ms p99",
        "req/s",
        "tok/s",
        "good/s",
        "good",
        "failed",
    ):
        table.add_column(heading, justify="right")
    stricter = [f"{limit:g}" for limit in limits.stricter_tpot_limits_ms]
    for limit in stricter:
        table.add_column(f"good/s, {limit} ms", justify="right")
    for row in comparison.online:
        for name, figures in row.engines.items():
            good = [format_figure(figures.stricter[limit].median) for limit in stricter if limit in figures.stricter]
            table.add_row(row.model, describe(row), escape(name), *_online_figures(row, name), *good)
    return table


def describe(row: OnlineRow) -> str:
    """The load in words."""
    return f"{row.concurrency} in flight" if row.rate is None else f"{row.rate:g} requests/s"


def _online_figures(row: OnlineRow, name: str) -> list[str]:
    figures = row.engines[name]

    def pair(middle: Spread, tail: Spread) -> str:
        return f"{format_figure(middle.median)} / {format_figure(tail.median)}"

    return [
        pair(figures.ttft_ms_p50, figures.ttft_ms_p99),
        pair(figures.tpot_ms_p50, figures.tpot_ms_p99),
        format_figure(figures.itl_ms_p99.median),
        format_figure(figures.requests_per_s.median),
        format_figure(figures.output_tokens_per_s.median),
        format_figure(figures.goodput_per_s.median),
        f"{figures.good_share.median:.0%}",
        str(figures.failed),
    ]


def _table(title: str, caption: str, headings: Iterable[str]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _or_dash(value: float | None) -> str:
    return "-" if value is None else format_figure(value)
