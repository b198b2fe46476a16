"""The section about what packs cost, what they take, and when tuning pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parhelion.tuning.report.data import PackCost, Payback
from parhelion.tuning.report.html import Content, Markup, element, number, seconds, size_of, table
from parhelion.tuning.report.payback import FORMULA


def costs_section(costs: Sequence[PackCost]) -> Markup:
    """A column for each pack, and a table of when each pays."""
    parts: list[Content] = [element("h2", {"id": "cost"}, "Cost")]
    if costs:
        parts.append(element("div", {"class": "cost"}, _ledger(costs)))
        parts += _paybacks(costs)
    else:
        parts.append(element("p", {}, "No pack, so nothing is known of costs: pass --pack."))
    return element("section", {"aria-labelledby": "cost"}, *parts)


def _ledger(costs: Sequence[PackCost]) -> Markup:
    rows: list[list[Content]] = [
        ["tuning, wall clock", *(seconds(cost.tune_s) for cost in costs)],
        ["of it the GPU at work", *(seconds(cost.ledger.gpu_s) for cost in costs)],
        ["compiling candidates, processor time", *(seconds(cost.ledger.compile_s) for cost in costs)],
        ["building what is kept, processor time", *(seconds(cost.ledger.build_s) for cost in costs)],
        ["candidates compiled", *(str(cost.ledger.num_compiled) for cost in costs)],
        ["given up before they ran", *(str(cost.ledger.num_dropped) for cost in costs)],
        ["timed", *(str(cost.ledger.num_timed) for cost in costs)],
        ["rows", *(str(cost.rows) for cost in costs)],
        ["binaries", *(f"{cost.num_binaries} ({size_of(cost.binary_bytes)})" for cost in costs)],
        ["largest workspace of a launch", *(size_of(cost.workspace_bytes) for cost in costs)],
        ["Python's part of one launch", *(_microseconds(cost.ledger.launch_us) for cost in costs)],
    ]
    return table("What the packs cost and take", ["", *(cost.pack for cost in costs)], rows)


def _paybacks(costs: Sequence[PackCost]) -> Iterator[Markup]:
    yield element("h3", {}, "When tuning pays back")
    yield element(
        "p",
        {},
        element("strong", {}, FORMULA),
        ", where a round launches the best of every row that was measured at this M once, and saved is how much longer "
        "the round would take with the fastest provider other than Helion in each row, TorchInductor included; where "
        "such a provider is the best itself, nothing is saved. So a GPU that serves nothing but such rounds has earned "
        "the tuning of the whole pack back after so many hours. Real steps launch some ops more often than others and "
        "mix sizes, so this is an estimate.",
    )
    for cost in costs:
        headings = ["M", "rows", "without a rival", "round, µs", "saved, µs", "GPU-hours"]
        yield table(f"{cost.pack}: {seconds(cost.tune_s)} of tuning", headings, map(_payback, cost.paybacks))


def _payback(payback: Payback) -> list[Content]:
    hours = "never" if not payback.saved_us else "-" if payback.gpu_hours is None else number(payback.gpu_hours)
    return [
        str(payback.num_tokens),
        str(payback.rows),
        str(payback.without_rival),
        number(payback.round_us),
        number(payback.saved_us),
        hours,
    ]


def _microseconds(value: float) -> str:
    return f"{number(value)} µs" if value > 0 else "-"
